r"""ROME on GPT-J 6B, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/rome_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: kmeng01/memit 80426fd. Contexts are ROME's own: the bare prompt, ten sampled texts of five
tokens and ten of ten.
"""

from ml_collections import config_dict

from jedit.configs import pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_gptj.get_config()
  c.edit.mode = 'separate'  # a rank-one update writes one record
  c.method = dict(
    name='rome',
    layers=(5,),
    learning_rate=0.5,
    num_steps=20,
    clip_factor=4.0,
    weight_decay=0.5,
    kl_factor=0.0625,
  )
  return c
