r"""PMET on Llama-2-7B: the settings that its author gave.

python -m jedit.main --config=configs/pmet_llama_2_7b.py --config.model.path=LLAMA2_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: issue 5 of xpq-tech/PMET. EasyEdit (14cea82) ships a covariance weight of 15,000.
"""

from ml_collections import config_dict

from jedit.configs import memit_llama_2_7b, pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_llama_2_7b.get_config()
  c.method = pmet_gptj.get_config().method
  c.method.update(
    layers=(4, 5, 6, 7, 8), learning_rate=0.5, num_steps=20, clip_factor=1.0, kl_factor=0.0625
  )
  return c
