r"""Finished runs side by side, as a table and a page.

python -m jedit.main --config=configs/compare.py --config.workdirs=runs/a,runs/b --workdir=runs/both

`workdirs` are of edits, evaluations and sweeps.
"""

from jedit.experiments.config import default_config


def get_config():
  return default_config('compare')
