r"""JEEP on LLaMA-7B, zsRE: the settings of its released code.

python -m jedit.main --config=configs/jeep_llama_7b_zsre.py --config.model.path=LLAMA_DIRECTORY \
  --config.data.records=zsre_mend_eval.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e; see configs/jeep_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import jeep_llama_7b


def get_config() -> config_dict.ConfigDict:
  c = jeep_llama_7b.get_config()
  c.method.update(cov_weight_low=6000.0, cov_weight_high=3000.0, clip_factor_high=0.7)
  return c
