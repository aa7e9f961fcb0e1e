r"""MEMIT on Llama-2-7B, one layer: the settings of the code released with EMMET.

python -m jedit.main --config=configs/memit_llama_2_7b_unified.py \
  --config.model.path=LLAMA2_DIRECTORY --config.data.records=multi_counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: scalable-model-editing/unified-model-editing 23d72b5.
"""

from ml_collections import config_dict

from jedit.configs import memit_llama_2_7b


def get_config() -> config_dict.ConfigDict:
  c = memit_llama_2_7b.get_config()
  c.method.update(layers=(5,), cov_weight=1.0)
  return c
