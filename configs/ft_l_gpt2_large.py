r"""FT+L on GPT2-L, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/ft_l_gpt2_large.py \
  --config.model.path=GPT2_LARGE_DIRECTORY --config.data.records=counterfact.json

Figures: kmeng01/memit 80426fd.
"""

from ml_collections import config_dict

from jedit.configs import ft_l_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = ft_l_gpt2_xl.get_config()
  c.model.name = 'gpt2-large'
  c.method.norm_bound = 1e-3
  return c
