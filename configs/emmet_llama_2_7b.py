r"""EMMET on Llama-2-7B, one layer, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/emmet_llama_2_7b.py --config.model.path=LLAMA2_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: scalable-model-editing/unified-model-editing 23d72b5; EasyEdit (14cea82) has a covariance
weight of 100,000.
"""

from ml_collections import config_dict

from jedit.configs import memit_llama_2_7b_unified


def get_config() -> config_dict.ConfigDict:
  c = memit_llama_2_7b_unified.get_config()
  c.method.update(name='emmet', key_ridge=0.1)
  return c
