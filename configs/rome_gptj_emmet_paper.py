r"""ROME on GPT-J 6B, CounterFact: the settings of EMMET's paper.

python -m jedit.main --config=configs/rome_gptj_emmet_paper.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: layer and targets as configs/memit_gptj_emmet_paper.py.
Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import rome_gptj


def get_config() -> config_dict.ConfigDict:
  c = rome_gptj.get_config()
  c.method.update(layers=(8,), num_steps=25, clip_factor=0.75)
  return c
