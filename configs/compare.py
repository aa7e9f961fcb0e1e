r"""Compares finished runs in one table and report.

python -m jedit.main --config=configs/compare.py --config.workdirs=runs/a,runs/b --workdir=runs/both

`workdirs` lists workdirs of edits, evaluations and sweeps.
"""

from jedit.experiments.config import default_config


def get_config():
  return default_config('compare')
