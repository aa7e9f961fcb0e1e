r"""The cost of bfloat16: the same edits with bfloat16 and with float32 weights and activations.

  python benchmarks/precision.py --testbed=gptj --num_edits=100 --out=precision.json

Deltas, losses, optimiser moments, second moments, solves and edited kernels are float32 or wider in
both; the stored weights are bfloat16, so both models start from the same numbers. Prints, for each
method, how far targets and updates move apart, the metrics of both models, and the share of the
update that is lost when the edited kernels are rounded to bfloat16 on export.
"""

import argparse
import random
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from common.command_line import Parser, name_list, whole
from common.runner import write_report
from common.timing import spread

import jedit
from jedit.testbeds import NAMES, testbed_corpus, testbed_directory, testbed_prompts
from jedit.types import UserError

PARSER = Parser(__doc__, 'out')
PARSER.add('num_edits', whole(1), 100, 'records to edit, in one batch')
PARSER.add_argument(
  '--testbed', choices=NAMES, default='gptj', help='shipped model (default: %(default)s)'
)
PARSER.add('methods', name_list, ('pmet', 'memit'), 'methods with settings for the testbed')
PARSER.add('questions', whole(0), 500, 'questions about subjects that are not edited')

_DTYPES = ('float32', 'bfloat16')
_METRICS = ('score', 'efficacy', 'paraphrase', 'neighborhood', 'unedited_kept')


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
  """Norm of the difference over the norm."""
  return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def run(settings: argparse.Namespace) -> dict[str, Any]:
  """Edits with every method in both precisions."""
  import jax  # slow to import, as the modules below

  from jedit.editing.contexts import sample_contexts

  testbed = settings.testbed
  _, records = jedit.testbed(testbed)
  records = records[: settings.num_edits]
  questions = [(p.text, p.answer) for p in testbed_prompts(testbed) if not p.edited]
  random.Random(0).shuffle(questions)
  models = {dtype: jedit.load(testbed_directory(testbed), dtype=dtype) for dtype in _DTYPES}
  contexts = sample_contexts(models['float32'], 0)
  rows = []
  for name in settings.methods:
    method = jedit.preset(name, f'testbed-{testbed}')
    results, tables, lost = {}, {}, []
    for dtype, lm in models.items():
      second_moments = jedit.statistics(lm, testbed_corpus(testbed), method.layers)
      results[dtype] = jedit.edit(lm, records, method, second_moments, contexts=contexts)
      edited = lm.apply(results[dtype])
      unedited = questions[: settings.questions]
      tables[dtype] = jedit.evaluate(edited, records, before=lm, unedited=unedited).metrics
      if dtype == 'float32':
        with tempfile.TemporaryDirectory() as folder:
          rounding = edited.export(f'{folder}/model', dtype='bfloat16').rounding
        lost = [each.update or 0.0 for each in rounding.values()]
    wide, narrow = (results[dtype] for dtype in _DTYPES)
    rows.append(
      {
        'method': name,
        'targets': {
          delta: spread(
            [relative(*pair) for pair in zip(narrow.details.z[delta], z_BxD, strict=True)]
          )
          for delta, z_BxD in wide.details.z.items()
        },
        'updates': {
          path: relative(narrow.patch.updates[path].value(), update.value())
          for path, update in wide.patch.updates.items()
        },
        'metrics': {
          dtype: {metric: table[metric]['after'] for metric in _METRICS if metric in table}
          for dtype, table in tables.items()
        },
        'export_update_error': max(lost),
      }
    )
  device = jax.devices()[0].device_kind
  return {'testbed': testbed, 'device': device, 'num_edits': len(records), 'rows': rows}


def table(report: Mapping[str, Any]) -> str:
  """The report for people."""
  lines = []
  for row in report['rows']:
    targets = ', '.join(
      f'{delta} {each["median"]:.2g} ({each["min"]:.2g} .. {each["max"]:.2g})'
      for delta, each in row['targets'].items()
    )
    lines += [
      '',
      f'{row["method"]}: {report["num_edits"]} edits of the {report["testbed"]} testbed, bfloat16 '
      f'against float32, {report["device"]}',
      f'  targets, median relative difference (min .. max): {targets}',
      '  updates, relative difference: '
      + ', '.join(f'{path} {value:.2g}' for path, value in row['updates'].items()),
      f'  update lost by rounding on export: {row["export_update_error"]:.2g}',
    ]
    for dtype, metrics in row['metrics'].items():
      line = (f'{name} {each["mean"]:.1f} ± {each["ci95"]:.1f}' for name, each in metrics.items())
      lines.append(f'  {dtype:9}' + '   '.join(line))
  return '\n'.join(lines)


if __name__ == '__main__':
  settings = PARSER.parse_args()
  try:
    report = run(settings)
  except UserError as error:
    PARSER.error(str(error))
  print(table(report))
  write_report(report, settings.out)
