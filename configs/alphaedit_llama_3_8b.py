r"""AlphaEdit on Llama-3-8B: the settings of its released code, batches of 100 one after the other.

python -m jedit.main --config=configs/alphaedit_llama_3_8b.py --config.model.path=LLAMA3_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: jianghoucheng/AlphaEdit f5248d3; its λ of MEMIT is not used. The paper (arXiv:2410.02355)
has a threshold of 0.01.
"""

from ml_collections import config_dict

from jedit.configs import alphaedit_gptj


def get_config() -> config_dict.ConfigDict:
  c = alphaedit_gptj.get_config()
  c.model.name = 'llama-3-8b'
  c.statistics.row_tokens = 8192
  c.method.update(layers=(4, 5, 6, 7, 8), learning_rate=0.1)
  return c
