r"""MEMIT on LLaMA-7B, CounterFact: the settings of JEEP's released code.

python -m jedit.main --config=configs/memit_llama_7b.py --config.model.path=LLAMA_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e; the text of JEEP (arXiv:2412.17872, D.5) has 25 steps.
The released run was in float16: --config.model.dtype=float16.
"""

from ml_collections import config_dict

from jedit.configs import pmet_llama_7b


def get_config() -> config_dict.ConfigDict:
  c = pmet_llama_7b.get_config()
  c.method.update(name='memit', kl_factor=0.0625)
  return c
