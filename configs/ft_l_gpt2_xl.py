r"""FT+L on GPT2-XL, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/ft_l_gpt2_xl.py --config.model.path=GPT2_XL_DIRECTORY \
  --config.data.records=counterfact.json

Figures: kmeng01/memit 80426fd.
"""

from ml_collections import config_dict

from jedit.configs import ft_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = ft_gpt2_xl.get_config()
  c.method.update(name='ft_l', layers=(0,), norm_bound=5e-4)
  return c
