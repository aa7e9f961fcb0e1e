r"""ROME on Llama-2-7B, CounterFact: the settings of EMMET's paper.

python -m jedit.main --config=configs/rome_llama_2_7b_emmet_paper.py \
  --config.model.path=LLAMA2_DIRECTORY --config.data.records=counterfact.json \
  --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: arXiv:2403.14236, A.1: layer and targets as configs/memit_llama_2_7b_emmet_paper.py;
second moments as in eq. 2. Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import rome_llama_2_7b


def get_config() -> config_dict.ConfigDict:
  c = rome_llama_2_7b.get_config()
  c.method.update(layers=(8,), use_cov=True)
  return c
