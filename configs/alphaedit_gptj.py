r"""AlphaEdit on GPT-J 6B: the settings of its released code, batches of 100 one after the other.

python -m jedit.main --config=configs/alphaedit_gptj.py --config.model.path=GPTJ_DIRECTORY \
  --config.data.records=multi_counterfact.json --config.statistics.corpus=WIKIPEDIA_TEXT

Figures: jianghoucheng/AlphaEdit f5248d3; its λ of MEMIT is not used. The paper (arXiv:2410.02355)
has a threshold of 0.01.
"""

from ml_collections import config_dict

from jedit.configs import memit_gptj


def get_config() -> config_dict.ConfigDict:
  c = memit_gptj.get_config()
  c.data.num_edits = 2000
  c.edit.update(mode='sequential', size=100, accumulate_keys=True)
  c.method = dict(
    name='alphaedit',
    layers=(3, 4, 5, 6, 7, 8),
    threshold=0.02,
    ridge=10.0,
    learning_rate=0.5,
    num_steps=25,
    clip_factor=0.75,
    weight_decay=0.5,
    kl_factor=0.0625,
  )
  return c
