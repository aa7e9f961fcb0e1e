r"""AlphaEdit on GPT2-XL: the settings of its released code, batches of 100 one after the other.

python -m jedit.main --config=configs/alphaedit_gpt2_xl.py --config.model.path=GPT2_XL_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: jianghoucheng/AlphaEdit f5248d3; its λ of MEMIT is not used. The paper (arXiv:2410.02355)
has a threshold of 0.01.
"""

from ml_collections import config_dict

from jedit.configs import alphaedit_gptj


def get_config() -> config_dict.ConfigDict:
  c = alphaedit_gptj.get_config()
  c.model.name = 'gpt2-xl'
  c.model.dtype = 'float32'
  c.statistics.row_tokens = 1024
  c.method.update(layers=(13, 14, 15, 16, 17), num_steps=20)
  return c
