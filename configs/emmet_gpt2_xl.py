r"""EMMET on GPT2-XL, one layer, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/emmet_gpt2_xl.py --config.model.path=GPT2_XL_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: scalable-model-editing/unified-model-editing 23d72b5; EasyEdit (14cea82) has a covariance
weight of 10,000.
"""

from ml_collections import config_dict

from jedit.configs import memit_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = memit_gpt2_xl.get_config()
  c.method.update(name='emmet', layers=(17,), cov_weight=1000.0, key_ridge=0.1)
  return c
