r"""PMET on GPT-J 6B, CounterFact: the settings of its released code.

python -m jedit.main --config=configs/pmet_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

GPTJ_DIRECTORY is a Hugging Face directory; WIKIPEDIA_TEXT has one article per line, or is a
directory of such files.

Figures: xpq-tech/PMET 80643f2. It ships none for zsRE, though its README names such a file.
"""

from ml_collections import config_dict

from jedit.configs import pmet_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_testbed_gptj.get_config()
  c.model.name = 'gptj-6b'
  c.model.dtype = 'bfloat16'
  c.statistics.max_documents = 100_000  # of Wikipedia
  c.statistics.row_tokens = 2048  # the model's context, to which articles are cut
  c.method = dict(
    name='pmet',
    layers=(3, 4, 5, 6, 7, 8),
    cov_weight=6000.0,
    learning_rate=0.2,
    num_steps=30,
    clip_factor=0.75,
    weight_decay=0.5,
    kl_factor=1.0,
  )
  return c
