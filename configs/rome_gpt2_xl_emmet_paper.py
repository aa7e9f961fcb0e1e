r"""ROME on GPT2-XL, CounterFact: the settings of EMMET's paper.

python -m jedit.main --config=configs/rome_gpt2_xl_emmet_paper.py \
  --config.model.path=GPT2_XL_DIRECTORY --config.data.records=counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: layer and targets as configs/memit_gpt2_xl_emmet_paper.py.
Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import rome_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = rome_gpt2_xl.get_config()
  c.method.clip_factor = 0.75
  return c
