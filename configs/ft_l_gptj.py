r"""FT+L on GPT-J 6B, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/ft_l_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=counterfact.json

Figures: kmeng01/memit 80426fd.
"""

from ml_collections import config_dict

from jedit.configs import ft_gptj


def get_config() -> config_dict.ConfigDict:
  c = ft_gptj.get_config()
  c.method.update(name='ft_l', layers=(0,), norm_bound=5e-5)  # |change| of every weight
  return c
