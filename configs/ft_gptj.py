r"""FT on GPT-J 6B, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/ft_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=counterfact.json

Figures: kmeng01/memit 80426fd. As in ROME's tables, records are edited one by one.
"""

from ml_collections import config_dict

from jedit.configs import rome_gptj


def get_config() -> config_dict.ConfigDict:
  c = rome_gptj.get_config()
  c.method = dict(
    name='ft',
    layers=(21,),
    learning_rate=5e-4,
    num_epochs=25,
    batch_size=64,
    stop_loss=0.01,
    loss_position='released',
  )
  return c
