r"""JEEP on GPT-J 6B, zsRE: the settings of its released code.

python -m jedit.main --config=configs/jeep_gptj_zsre.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=zsre_mend_eval.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e; see configs/jeep_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import jeep_gptj


def get_config() -> config_dict.ConfigDict:
  c = jeep_gptj.get_config()
  c.method.update(cov_weight_low=6000.0, clip_factor_high=0.8)
  return c
