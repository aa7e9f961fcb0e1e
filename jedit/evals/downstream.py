"""Downstream tasks of lm-evaluation-harness before and after an edit, as a table.

An edit is also judged by what it leaves alone: general abilities are measured on the tasks of
lm-evaluation-harness (arXiv:2405.14782), by their own metrics and few-shot prompts, on the model
interface of `jedit.evals.harness`.
"""

import dataclasses
import functools
import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from jedit.evals.harness import HarnessModel, library
from jedit.io import sealed, tables
from jedit.io.sealed import digest
from jedit.models.language_model import LanguageModel
from jedit.types import UserError

_SEED = 1234  # of few-shot examples, the harness's default
_BOOTSTRAP = 1000  # draws for the standard error of metrics that are no means
_FORMAT = 'jedit downstream 1'
_ARROWS: dict[bool | None, str] = {True: '↑', False: '↓', None: ''}
_DIGITS = 4  # as the harness prints them


@dataclasses.dataclass(frozen=True)
class TaskResult:
  """A metric of a task.

  Attributes:
    task: its name, or that of a group.
    metric: name, with the filter of the answers where it is not 'none': 'exact_match,strict'.
    num_shots: examples in the prompt; None for a group whose tasks differ.
    num_documents: that the metric is computed on.
    higher_is_better: the direction of improvement; None where the task does not say.
    after: `mean` and `ci95` (1.96 standard errors; None where the task has none) of the model.
    before: the same of the model before the edit; None if not measured.
  """

  task: str
  metric: str
  num_shots: int | None
  num_documents: int
  higher_is_better: bool | None
  after: Mapping[str, float | None]
  before: Mapping[str, float | None] | None = None


@dataclasses.dataclass(frozen=True, repr=False)
class TaskTable:
  """Results of downstream tasks; `str`, `repr` and notebooks show them as a table.

  Attributes:
    results: by task and metric.
    version: of lm-evaluation-harness.
  """

  results: tuple[TaskResult, ...]
  version: str

  def to_frame(self) -> pd.DataFrame:
    """Cells for `jedit.io.tables`: task, metric, shots, documents, before and after."""
    states = [
      s for s in ('before', 'after') if any(getattr(r, s) is not None for r in self.results)
    ]
    rows = [
      [
        each.task,
        f'{each.metric} {_ARROWS[each.higher_is_better]}'.rstrip(),
        each.num_shots,
        each.num_documents,
        *(_cell(getattr(each, state)) for state in states),
      ]
      for each in self.results
    ]
    return tables.table(['task', 'metric', 'shots', 'documents', *states], rows)

  def __str__(self) -> str:
    return f'{tables.to_text(self.to_frame())}\n{self.note}'

  __repr__ = __str__

  def _repr_html_(self) -> str:
    return f'{tables.to_html(self.to_frame())}<div>{html.escape(self.note)}</div>'

  @property
  def note(self) -> str:
    """The version of the harness and the signs of the table."""
    return (
      f'lm-evaluation-harness {self.version}; ± half width of the 95% interval; ↑ higher is '
      'better, ↓ lower.'
    )


def check_tasks(tasks: Sequence[str]) -> None:
  """Checks that lm-evaluation-harness has these tasks, without loading their data.

  Args:
    tasks: names of tasks, groups or tags, or YAML files of one's own.

  Raises:
    UserError: without the package, for no tasks, and for one that is not installed.
  """
  library()
  files = [name for name in tasks if pathlib.Path(name).is_file()]
  lost = [name for name in tasks if name not in files and name.endswith('.yaml')]
  named = {} if lost else _manager(tuple(tasks)).task_index
  for name in tasks:
    if name not in files and name not in named:
      raise UserError(
        f'There is no harness task {name!r}; name one of `lm_eval ls tasks`, or a YAML file.'
      )


def evaluate_tasks(
  lm: LanguageModel,
  tasks: Sequence[str],
  before: LanguageModel | None = None,
  *,
  limit: int | None = None,
  num_shots: int | None = None,
  tokens_per_batch: int | None = None,
  store: str | os.PathLike[str] | None = None,
) -> TaskTable:
  """Runs tasks of lm-evaluation-harness on a model, and on the model before the edit.

  Args:
    lm: the edited model.
    tasks: names of tasks, groups or tags of the harness, or YAML files of one's own.
    before: the model before the edit, measured on the same documents and few-shot examples.
    limit: first documents of each task; None takes all.
    num_shots: examples in the prompt; None takes each task's own number.
    tokens_per_batch: of a forward pass, which bounds the memory; None chooses by device.
    store: directory of finished models; the same call takes their results from there.

  Raises:
    UserError: without the package, for a task that is not installed or not for text alone, and for
      one whose data cannot be loaded.
  """
  check_tasks(tasks)
  version = str(library().__version__)
  loaded: dict[str, Any] = {}

  def measured(model: LanguageModel) -> list[TaskResult]:
    patches = [patch.id for patch in model.patches]
    key: list[Any] = [model.fingerprint, model.config.dtype, patches, _identity(tasks)]
    key += [limit, num_shots, version]
    file = None if store is None else pathlib.Path(store) / f'{digest(key)[:12]}.json'
    if file is not None and (done := sealed.kept(file, _read, key)) is not None:
      return done
    loaded.update(loaded or _load(tasks, num_shots))
    results = _run(HarnessModel(model, tokens_per_batch), loaded, limit)
    if file is not None:
      sealed.write_json(file, _FORMAT, {'results': results}, key)
    return results

  if before is None:
    return TaskTable(tuple(measured(lm)), version)
  pairs = zip(measured(before), measured(lm), strict=True)
  return TaskTable(tuple(dataclasses.replace(new, before=old.after) for old, new in pairs), version)


def _read(file: pathlib.Path, key: Any) -> list[TaskResult]:
  return sealed.read_json(file, _FORMAT, key, dict[str, list[TaskResult]])['results']


def _identity(tasks: Sequence[str]) -> list[Any]:
  """Names of tasks, and the text of YAML files."""
  files = [pathlib.Path(name) for name in tasks]
  return [[name, f.read_bytes().hex() if f.is_file() else ''] for name, f in zip(tasks, files)]


@functools.lru_cache(maxsize=1)
def _manager(tasks: tuple[str, ...]) -> Any:
  """The harness's index of tasks: with its own ones, which take seconds, if a name needs them."""
  if not tasks or not all(name.strip() for name in tasks):
    raise UserError('There is no harness task; name at least one.')
  files = [pathlib.Path(name) for name in tasks if pathlib.Path(name).is_file()]
  return library('lm_eval.tasks').TaskManager(
    include_path=sorted({str(file.parent) for file in files}),
    include_defaults=len(files) < len(tasks),
  )


def _load(tasks: Sequence[str], num_shots: int | None) -> dict[str, dict[str, Any]]:
  """The tasks with their data."""
  manager, loaded = (
    _manager(tuple(tasks)),
    dict[str, dict[str, Any]](tasks={}, groups={}, group_map={}),
  )
  for name in tasks:
    try:
      found = manager.load([name])
    except Exception as error:  # of YAML files, data sets and code of tasks
      reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
      raise UserError(
        f'The harness task {name!r} cannot be loaded ({reason}); see that its data are here or can '
        'be downloaded, or leave the task out.'
      ) from error
    for part, items in found.items():
      loaded[part] |= items
  for name, task in loaded['tasks'].items():
    if getattr(task, 'UNSAFE_CODE', False) or getattr(task, 'MULTIMODAL', False):
      kind = 'needs images' if getattr(task, 'MULTIMODAL', False) else 'runs generated code'
      raise UserError(f'The harness task {name!r} {kind}; leave it out.')
    own = task.get_config('num_fewshot')
    if own is None or num_shots is not None and own != 0:  # 0 is written by tasks that allow none
      task.set_config(key='num_fewshot', value=num_shots or 0)
  return loaded


def _run(model: HarnessModel, loaded: Mapping[str, Any], limit: int | None) -> list[TaskResult]:
  """Results of one model."""
  for task in loaded['tasks'].values():
    task.set_fewshot_seed(_SEED)  # the same examples for every model
  found = library('lm_eval.evaluator').evaluate(
    lm=model, task_dict=loaded, limit=limit, bootstrap_iters=_BOOTSTRAP, log_samples=False
  )
  results = []
  for task, values in found['results'].items():
    for name, value in values.items():
      metric, _, kind = name.partition(',')
      if not kind or metric.endswith('_stderr') or not isinstance(value, int | float):
        continue
      error = values.get(f'{metric}_stderr,{kind}')
      ci95 = 1.96 * error if isinstance(error, int | float) else None
      results.append(
        TaskResult(
          task,
          metric if kind == 'none' else name,
          found['n-shot'].get(task),
          int(values.get('sample_len', 0)),
          found['higher_is_better'].get(task, {}).get(metric),
          {'mean': float(value), 'ci95': ci95},
        )
      )
  return results


def _cell(estimate: Mapping[str, float | None] | None) -> dict[str, Any] | None:
  return None if estimate is None else {**estimate, 'digits': _DIGITS}
