r"""ROME on GPT-NeoX-20B, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/rome_gpt_neox_20b.py --config.model.path=NEOX_DIRECTORY \
  --config.data.records=counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: kmeng01/memit 80426fd. Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import memit_gpt_neox_20b, rome_gptj


def get_config() -> config_dict.ConfigDict:
  c = rome_gptj.get_config()
  c.model = memit_gpt_neox_20b.get_config().model
  c.method.layers = (15,)
  return c
