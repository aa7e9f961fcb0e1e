"""The damage monitor on changes of known size."""

import numpy as np

from helpers import editing
from jedit.experiments.damage import DamageMonitor
from jedit.experiments.schema import Edit
from jedit.io.jsonl import read_jsonl
from jedit.models.patch import Patch, Update

PATHS = ('block_0/mlp/down/kernel', 'block_2/mlp/down/kernel')


def _scaled(lm, path, factor):
  """A patch that adds `factor` times the unedited kernel."""
  block, *names = path.split('/')
  kernel = lm.base[block]
  for name in names:
    kernel = kernel[name]
  return Patch({path: Update(dense=factor * np.asarray(kernel, np.float32))})


def test_growth_is_the_share_of_the_norm_that_all_patches_added(tmp_path):
  lm = editing.language_model()
  monitor = DamageMonitor(tmp_path / 'damage.jsonl', lm, [], Edit(max_growth=0.5))
  once = lm.apply(_scaled(lm, PATHS[0], 0.25))
  assert monitor.check(3, once) == ''
  twice = once.apply(_scaled(lm, PATHS[1], 0.125)).apply(_scaled(lm, PATHS[0], 0.3125))
  assert monitor.check(5, twice) == (
    f'Stopped after 5 edits: {PATHS[0]} has moved by 0.56 of its norm, more than '
    'edit.max_growth = 0.5.'
  )
  assert [row['edits'] for row in monitor.rows] == [0, 3, 5]
  growths = [row['growth'] for row in monitor.rows]
  assert growths[0] == {} and list(growths[1]) == [PATHS[0]] and list(growths[2]) == [*PATHS]
  np.testing.assert_allclose(growths[1][PATHS[0]], 0.25, rtol=1e-5)
  np.testing.assert_allclose(list(growths[2].values()), [0.5625, 0.125], rtol=1e-5)
  assert read_jsonl(tmp_path / 'damage.jsonl', 'jedit damage 1') == monitor.rows


def test_without_a_threshold_growth_stops_nothing(tmp_path):
  lm = editing.language_model()
  monitor = DamageMonitor(tmp_path / 'damage.jsonl', lm, [], Edit())
  assert monitor.check(1, lm.apply(_scaled(lm, PATHS[0], 9.0))) == ''
