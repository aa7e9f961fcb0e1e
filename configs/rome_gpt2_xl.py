r"""ROME on GPT2-XL, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/rome_gpt2_xl.py --config.model.path=GPT2_XL_DIRECTORY \
  --config.data.records=counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: kmeng01/memit 80426fd. Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import memit_gpt2_xl, rome_gptj


def get_config() -> config_dict.ConfigDict:
  c = rome_gptj.get_config()
  base = memit_gpt2_xl.get_config()
  c.model, c.statistics = base.model, base.statistics
  c.method.layers = (17,)
  return c
