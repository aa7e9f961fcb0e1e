r"""FT-W on LLaMA-7B, CounterFact: the settings of JEEP's released code.

python -m jedit.main --config=configs/ft_w_llama_7b.py --config.model.path=LLAMA_DIRECTORY \
  --config.data.records=multi_counterfact.json

Figures: Eric8932/JEEP d149a1e, whose loss is over all target tokens of a batch, each predicted
after those before it. Like MEMIT's, that code runs without weight decay.
"""

from ml_collections import config_dict

from jedit.configs import ft_w_gptj


def get_config() -> config_dict.ConfigDict:
  c = ft_w_gptj.get_config()
  c.model.name = 'llama-7b'
  c.method.update(
    layers=(23,),
    learning_rate=5e-5,
    stop_loss=0.1,
    loss_position='paper',
    mean_over='tokens',
  )
  return c
