r"""JEEP on GPT-J 6B, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/jeep_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: Eric8932/JEEP d149a1e. The released run was in float16: --config.model.dtype=float16.
"""

from ml_collections import config_dict

from jedit.configs import pmet_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_gptj.get_config()
  c.method = dict(
    name='jeep',
    layers_low=(3, 4, 5, 6, 7, 8),
    layers_high=(15, 16),
    cov_weight_low=2000.0,
    cov_weight_high=2000.0,
    clip_factor_low=0.75,
    clip_factor_high=0.25,
    weight_decay_low=0.5,
    weight_decay_high=0.5,
    learning_rate=0.5,
    num_steps=30,
    kl_factor=0.0625,  # at the subject; the prompt's last token has no such term
    stop_probability=0.9,
    form='mlp',  # as the paper (arXiv:2412.17872) writes it; 'released' as the code does
  )
  return c
