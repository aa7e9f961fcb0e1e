"""A metric of one entry, from the evaluation to every file and page."""

import csv
import json

import numpy as np
import pytest

from helpers import tiny_run
from jedit import experiments
from jedit.evals import metrics

NAME = 'likelihood'


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A run, and a comparison of two, with a metric more; afterwards the registry is as it was."""
  made = tiny_run.make(tmp_path_factory.mktemp('made'))
  toy = metrics.Metric(
    NAME,
    'efficacy',
    lambda scores: float(np.mean(scores.wanted_nll_P)),
    'mean nats of the <new> object',
    unit='nats & more',
    higher_is_better=False,
    is_headline=True,
    digits=3,
  )
  config = tiny_run.config(made)
  config.method = dict(name='ft_w', layers=(1,), num_epochs=1)
  before = dict(metrics.METRICS)
  metrics.register(toy)
  try:
    experiments.run(config, made / 'one')
    config.method.num_epochs = 2
    experiments.run(config, made / 'two')
    compare = tiny_run.config(made, task='compare')
    compare.workdirs = f'{made / "one"},{made / "two"}'
    experiments.run(compare, made / 'both')
    yield made
  finally:
    metrics.METRICS.clear()
    metrics.METRICS.update(before)


def _rows(file):
  with open(file, newline='') as lines:
    return list(csv.DictReader(lines))


def test_a_registered_metric_is_in_the_files_of_a_run(runs):
  rows = [json.loads(line) for line in (runs / 'one' / 'records.jsonl').read_text().splitlines()]
  summary = json.loads((runs / 'one' / 'summary.json').read_text())
  for state in ('before', 'after'):
    mean = np.mean([row[state][NAME] for row in rows])
    assert summary['metrics'][NAME][state]['mean'] == pytest.approx(mean) and mean > 0
  [row] = [row for row in _rows(runs / 'one' / 'metrics.csv') if row['metric'] == NAME]
  assert float(row['after']) == summary['metrics'][NAME]['after']['mean']
  assert (
    f'{NAME} & ${summary["metrics"][NAME]["before"]["mean"]:.3f}'
    in (runs / 'one' / 'metrics.tex').read_text()
  )


def test_a_registered_metric_is_on_the_page_of_a_run(runs):
  page = (runs / 'one' / 'report.html').read_text()
  summary = json.loads((runs / 'one' / 'summary.json').read_text())
  assert f'<td>{NAME}</td>' in page
  assert f'<td>{summary["metrics"][NAME]["after"]["mean"]:.3f} ± ' in page
  assert 'mean nats of the &lt;new&gt; object' in page
  assert f'percent, except {NAME} (nats &amp; more)' in page
  place = page.index(f'<td>{NAME}</td>', page.index('Definitions'))
  assert '<td>lower</td>' in page[place : place + 200]


def test_a_registered_metric_is_in_the_comparison(runs):
  both = runs / 'both'
  found = {row['cell']: row for row in _rows(both / 'compare.csv') if row['metric'] == NAME}
  assert found.keys() == {'one', 'two'}
  head = (both / 'compare.tex').read_text().splitlines()[2]
  assert NAME in head.split(' & ')
  assert (both / 'report.html').read_text().count(NAME) >= 2  # a column, and among all metrics


def test_a_registered_metric_is_in_text(runs, capsys):
  config = tiny_run.config(runs)
  config.method = dict(name='ft_w', layers=(1,), num_epochs=1)
  experiments.run(config, runs / 'one')  # finished: prints its report
  compare = tiny_run.config(runs, task='compare')
  compare.workdirs = f'{runs / "one"},{runs / "two"}'
  experiments.run(compare, runs / 'both')
  text = capsys.readouterr().out
  assert sum(line.split()[0] == NAME for line in text.splitlines() if line.strip()) == 1
  assert any(NAME in line.split() and 'score' in line.split() for line in text.splitlines())


def test_a_metric_of_another_registry_is_compared(runs, tmp_path, monkeypatch):
  monkeypatch.delitem(metrics.METRICS, NAME)
  compare = tiny_run.config(runs, task='compare')
  compare.workdirs = f'{runs / "one"},{runs / "two"}'
  experiments.run(compare, tmp_path / 'both')
  assert any(row['metric'] == NAME for row in _rows(tmp_path / 'both' / 'compare.csv'))
  assert NAME in (tmp_path / 'both' / 'report.html').read_text()
