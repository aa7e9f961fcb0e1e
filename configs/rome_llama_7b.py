r"""ROME on LLaMA-7B, CounterFact: the settings of JEEP's released code.

python -m jedit.main --config=configs/rome_llama_7b.py --config.model.path=LLAMA_DIRECTORY \
  --config.data.records=counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e. Contexts are as in configs/rome_gptj.py.
"""

from ml_collections import config_dict

from jedit.configs import pmet_llama_7b, rome_gptj


def get_config() -> config_dict.ConfigDict:
  c = rome_gptj.get_config()
  c.model = pmet_llama_7b.get_config().model
  c.method.layers = (7,)
  return c
