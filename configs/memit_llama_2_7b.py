r"""MEMIT on Llama-2-7B: EasyEdit's settings.

python -m jedit.main --config=configs/memit_llama_2_7b.py --config.model.path=LLAMA2_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: zjunlp/EasyEdit 14cea82. For those of another code see configs/memit_llama_2_7b_unified.py.
"""

from ml_collections import config_dict

from jedit.configs import memit_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gptj.get_config()
  c.model.name = 'llama-2-7b'
  c.statistics.row_tokens = 4096
  c.method.update(layers=(4, 5, 6, 7, 8), clip_factor=4.0, weight_decay=1e-3)
  return c
