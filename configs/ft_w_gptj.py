r"""FT-W on GPT-J 6B, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/ft_w_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json

Figures: kmeng01/memit 80426fd. That code runs without the weight decay that names the method, and
reads all tokens of a target at the end of the prompt: --config.method.weight_decay=paper
--config.method.loss_position=paper are what the paper means.
"""

from ml_collections import config_dict

from jedit.configs import pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_gptj.get_config()
  c.method = dict(
    name='ft_w',
    layers=(21,),
    learning_rate=5e-4,
    num_epochs=25,
    batch_size=64,
    stop_loss=0.01,
    weight_decay='released',  # none
    loss_position='released',
  )
  return c
