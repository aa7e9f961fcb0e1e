r"""JEEP on LLaMA-7B, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/jeep_llama_7b.py --config.model.path=LLAMA_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e; see configs/jeep_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import jeep_gptj, pmet_llama_7b


def get_config() -> config_dict.ConfigDict:
  c = pmet_llama_7b.get_config()
  c.method = jeep_gptj.get_config().method
  c.method.update(
    layers_low=(5, 6, 7, 8, 9, 10),
    layers_high=(22, 23, 24),
    cov_weight_low=2500.0,
    cov_weight_high=1000.0,
    clip_factor_low=1.0,
  )
  return c
