r"""FT on GPT2-XL, CounterFact: the settings of the code released with MEMIT.

python -m jedit.main --config=configs/ft_gpt2_xl.py --config.model.path=GPT2_XL_DIRECTORY \
  --config.data.records=counterfact.json

Figures: kmeng01/memit 80426fd.
"""

from ml_collections import config_dict

from jedit.configs import ft_gptj, rome_gpt2_xl


def get_config() -> config_dict.ConfigDict:
  c = ft_gptj.get_config()
  base = rome_gpt2_xl.get_config()
  c.model, c.statistics = base.model, base.statistics
  c.method.layers = (1,)
  return c
