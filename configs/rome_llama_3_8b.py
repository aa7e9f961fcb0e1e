r"""ROME on Llama-3-8B: the settings of AlphaEdit's released code, with no second moments.

python -m jedit.main --config=configs/rome_llama_3_8b.py --config.model.path=LLAMA3_DIRECTORY \
  --config.data.records=counterfact.json

Figures: jianghoucheng/AlphaEdit f5248d3. Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import memit_llama_3_8b, rome_llama_2_7b


def get_config() -> config_dict.ConfigDict:
  c = rome_llama_2_7b.get_config()
  base = memit_llama_3_8b.get_config()
  c.model, c.statistics = base.model, base.statistics
  return c
