"""The stage of downstream tasks: lm-evaluation-harness before and after the edit."""

import pathlib

from jedit.evals.downstream import TaskTable, evaluate_tasks
from jedit.experiments.schema import Settings
from jedit.experiments.workdir import Workdir
from jedit.io import tables
from jedit.models.language_model import LanguageModel

_FOLDER = 'downstream'


def measure(
  edited: LanguageModel, lm: LanguageModel, settings: Settings, workdir: Workdir
) -> TaskTable | None:
  """Results of the tasks in `evaluation.harness`, as a table with CSV and LaTeX; None for none.

  Finished models are kept in the directory `downstream`, beside `evaluation.store` where the cells
  of a sweep share that, so that the unedited model is measured once.

  Args:
    edited: the model, with its patches.
    lm: the model without them.
    settings, workdir: of the run.
  """
  wanted = settings.evaluation
  if not wanted.downstream:
    return None
  store = pathlib.Path(wanted.store).parent if wanted.store else workdir.path
  with workdir.stage('downstream'):
    table = evaluate_tasks(
      edited,
      wanted.downstream,
      lm,
      limit=wanted.harness_limit or None,
      num_shots=None if wanted.harness_shots < 0 else wanted.harness_shots,
      tokens_per_batch=wanted.tokens_per_batch or None,
      store=store / _FOLDER,
    )
  tables.write(workdir / 'downstream', table.to_frame())
  return table
