r"""ROME on GPT2-M, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/rome_gpt2_medium.py \
  --config.model.path=GPT2_MEDIUM_DIRECTORY --config.data.records=counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: kmeng01/memit 80426fd. Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import rome_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = rome_gpt2_xl.get_config()
  c.model.name = 'gpt2-medium'
  c.method.update(layers=(8,), clip_factor=3.0)
  return c
