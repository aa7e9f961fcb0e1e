"""Probes against stored reference numbers, at the tolerances that stand beside them.

The folders come from the environment variable JEDIT_GOLDEN (several paths joined by ':'), by
default ../shared/golden; in each, `evaluation` holds the numbers and `models` the models.
"""

import functools
import json
import os
import pathlib

import numpy as np
import pytest

import jedit
from jedit.probes import contrast, similarity

_DEFAULT = pathlib.Path(__file__).parents[2] / '..' / 'shared' / 'golden'
_FOLDERS = [pathlib.Path(p) for p in os.environ.get('JEDIT_GOLDEN', str(_DEFAULT)).split(':') if p]
_CASES = [folder for folder in _FOLDERS if (folder / 'evaluation' / 'probes.npz').is_file()]

pytestmark = pytest.mark.skipif(
  not _CASES, reason='no reference cases: set JEDIT_GOLDEN or provide ../shared/golden'
)


@functools.cache
def _golden(folder):
  with np.load(folder / 'evaluation' / 'probes.npz') as stored:
    return {name: stored[name] for name in stored.files}


def _models(probe):
  found = []
  for folder in _CASES:
    names = {name.split('__')[0] for name in _golden(folder) if f'__{probe}__' in name}
    found += [(folder, model) for model in sorted(names)]
  return found


@functools.cache
def _load(folder, model):
  return jedit.load(folder / 'models' / model)


def _entries(folder, name):
  return json.loads((folder / 'evaluation' / name).read_text())


@pytest.mark.parametrize(('folder', 'model'), _models('similarity'))
def test_similarity(folder, model):
  requests = [
    jedit.Request(e['prompt'].replace(e['subject'], '{}', 1), e['subject'], e['attribute'])
    for e in _entries(folder, 'probe_known_facts.json')
  ]
  golden = {name: _golden(folder)[f'{model}__similarity__{name}'] for name in (
    'cosine', 'jaccard', 'jaccard_of_strings'
  )}  # fmt: skip
  for k, top_k in enumerate((10, 50)):
    found = similarity(_load(folder, model), requests, top_k=top_k)
    np.testing.assert_allclose(found.cosine_CxMxLxN, golden['cosine'], rtol=0, atol=1e-5)
    # Equal for every prompt, but for near ties at the border of the top words: so by curve.
    np.testing.assert_allclose(
      found.jaccard_CxMxJxLxN.mean(axis=-1), golden['jaccard'][:, :, :, k].mean(axis=-1), atol=1e-3
    )
    np.testing.assert_allclose(
      found.jaccard_of_strings_CxMxJxLxN[:, :, 0].mean(axis=-1),
      golden['jaccard_of_strings'][:, :, k].mean(axis=-1),
      atol=1e-3,
    )


@pytest.mark.parametrize(('folder', 'model'), _models('contrast'))
def test_contrast(folder, model):
  rewrites = [e['requested_rewrite'] for e in _entries(folder, 'probe_records.json')]
  requests = [
    jedit.Request(r['prompt'], r['subject'], r['target_new']['str'], r['target_true']['str'])
    for r in rewrites
  ]
  found = contrast(_load(folder, model), requests)
  golden = {name: _golden(folder)[f'{model}__contrast__{name}'] for name in (
    'prob', 'rank', 'position', 'first_token'
  )}  # fmt: skip
  np.testing.assert_array_equal(found.position_QxN, golden['position'])
  np.testing.assert_array_equal(found.first_token_OxN, golden['first_token'])
  np.testing.assert_allclose(found.prob_ZxQxOxSxN, golden['prob'], rtol=1e-3, atol=1e-7)
  off = np.abs(found.rank_ZxQxOxSxN - golden['rank'])
  assert off.max() <= 1 and np.mean(off > 0) <= 0.01
