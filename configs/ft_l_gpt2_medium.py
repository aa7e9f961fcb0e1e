r"""FT+L on GPT2-M, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/ft_l_gpt2_medium.py \
  --config.model.path=GPT2_MEDIUM_DIRECTORY --config.data.records=counterfact.json

Figures: kmeng01/memit 80426fd.
"""

from ml_collections import config_dict

from jedit.configs import ft_l_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = ft_l_gpt2_xl.get_config()
  c.model.name = 'gpt2-medium'
  c.method.norm_bound = 2e-3
  return c
