r"""ROME on Llama-2-7B: EasyEdit's settings, with no second moments.

python -m jedit.main --config=configs/rome_llama_2_7b.py --config.model.path=LLAMA2_DIRECTORY \
  --config.data.records=counterfact.json

Figures: zjunlp/EasyEdit 14cea82. Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import memit_llama_2_7b, rome_gptj


def get_config() -> config_dict.ConfigDict:
  c = rome_gptj.get_config()
  base = memit_llama_2_7b.get_config()
  c.model, c.statistics = base.model, base.statistics
  c.method.update(num_steps=25, weight_decay=1e-3, use_cov=False)
  return c
