r"""PMET on LLaMA-7B, zsRE: the settings of JEEP's released code.

python -m jedit.main --config=configs/pmet_llama_7b_zsre.py --config.model.path=LLAMA_DIRECTORY \
  --config.data.records=zsre_mend_eval.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e. The released run was in float16: --config.model.dtype=float16.
"""

from ml_collections import config_dict

from jedit.configs import pmet_llama_7b


def get_config() -> config_dict.ConfigDict:
  c = pmet_llama_7b.get_config()
  c.method.update(cov_weight=6000.0, clip_factor=1.0)
  return c
