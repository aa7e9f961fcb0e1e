r"""PMET on GPT-NeoX-20B, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/pmet_gpt_neox_20b.py --config.model.path=NEOX_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: xpq-tech/PMET 80643f2.
"""

from ml_collections import config_dict

from jedit.configs import memit_gpt_neox_20b, pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gpt_neox_20b.get_config()
  c.method = pmet_gptj.get_config().method
  c.method.update(
    layers=(6, 7, 8, 9, 10),
    cov_weight=15000.0,
    learning_rate=0.5,
    clip_factor=0.8,
    kl_factor=0.8,
  )
  return c
