r"""EMMET on GPT-J 6B, one layer, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/emmet_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: scalable-model-editing/unified-model-editing 23d72b5; another revision of its file,
dabbb96, has a covariance weight of 10,000, and EasyEdit (14cea82) one of 100,000.
"""

from ml_collections import config_dict

from jedit.configs import memit_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gptj.get_config()
  c.method.update(name='emmet', layers=(5,), cov_weight=1.0, key_ridge=0.1)
  return c
