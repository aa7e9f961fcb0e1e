"""Probes show themselves in notebooks as the figures of the papers."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from jedit.probes import Contrast, Similarity, Trace, windows_of
from jedit.probes.axes import ENDS, POSITIONS

_RNG = np.random.default_rng(0)
_LAYERS, _PROMPTS = 3, 4


def _values(*axes):
  return _RNG.random((*axes, _PROMPTS))


def _trace(positions, width, kinds=('mlp', 'attn')):
  windows = windows_of(_LAYERS, width)
  restored = _values(len(kinds), len(positions), len(windows))
  restored[:, 1, :, 0] = np.nan  # a prompt without such a token
  return Trace(kinds, positions, windows, _values(), _values(), restored)


FOUND = {
  'similarity': (
    lambda: Similarity(
      5, _values(2, 2, _LAYERS), _values(2, 2, 3, _LAYERS), _values(2, 2, 3, _LAYERS)
    ),
    1,
  ),
  'contrast': (
    lambda: Contrast(
      _values(2, 2, 2, _LAYERS + 1),
      _values(2, 2, 2, _LAYERS + 1),
      _values(2),
      _values(2),
      {'<cities>': _values(2, 2, _LAYERS + 1)},
    ),
    3,
  ),
  'trace of ends': (lambda: _trace(ENDS, 1), 1),
  'trace of tokens': (lambda: _trace(POSITIONS, 3), 2),
  'trace of hidden states': (lambda: _trace(POSITIONS, 1, ('hidden', 'attn', 'mlp')), 2),
}


@pytest.mark.parametrize('name', FOUND)
def test_a_notebook_shows_the_figures_of_a_probe(name):
  make, count = FOUND[name]
  found = make()
  assert len(repr(found).splitlines()) <= 10 and len(repr(found)) < 400
  page = found._repr_html_()
  pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
  assert len(pictures) == page.count('<figcaption>') == count
  for picture in pictures:
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    assert image.width > 400 and len(image.getcolors()) > 3
  assert '<cities>' not in page
