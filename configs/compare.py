r"""Finished runs side by side, as a table and a page.

python -m jedit.main --config=configs/compare.py --config.workdirs=runs/a,runs/b --workdir=runs/both
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.task = 'compare'
  c.workdirs = ''  # of edits, evaluations and sweeps, separated by commas
  return c
