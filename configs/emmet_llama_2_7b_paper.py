r"""EMMET on Llama-2-7B, one layer, CounterFact: the settings of its paper.

python -m jedit.main --config=configs/emmet_llama_2_7b_paper.py \
  --config.model.path=LLAMA2_DIRECTORY --config.data.records=multi_counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: the last layer of configs/emmet_llama_2_7b_paper_multilayer.py.
"""

from ml_collections import config_dict

from jedit.configs import emmet_llama_2_7b_paper_multilayer


def get_config() -> config_dict.ConfigDict:
  c = emmet_llama_2_7b_paper_multilayer.get_config()
  c.method.layers = (8,)
  return c
