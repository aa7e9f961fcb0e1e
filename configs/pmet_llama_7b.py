r"""PMET on LLaMA-7B, CounterFact: the settings of JEEP's released code.

python -m jedit.main --config=configs/pmet_llama_7b.py --config.model.path=LLAMA_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e. The released run was in float16: --config.model.dtype=float16.
"""

from ml_collections import config_dict

from jedit.configs import pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_gptj.get_config()
  c.model.name = 'llama-7b'
  c.method.update(layers=(5, 6, 7, 8, 9, 10), cov_weight=4000.0, learning_rate=0.5, clip_factor=0.9)
  return c
