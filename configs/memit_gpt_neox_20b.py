r"""MEMIT on GPT-NeoX-20B, CounterFact: the settings of PMET's released code.

python -m jedit.main --config=configs/memit_gpt_neox_20b.py --config.model.path=NEOX_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: xpq-tech/PMET 80643f2. The released run was in float16: --config.model.dtype=float16.
"""

from ml_collections import config_dict

from jedit.configs import memit_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gptj.get_config()
  c.model.name = 'gpt-neox-20b'
  c.statistics.max_documents = 50_000
  c.method.update(layers=(6, 7, 8, 9, 10), cov_weight=6000.0, num_steps=20, clip_factor=0.8)
  return c
