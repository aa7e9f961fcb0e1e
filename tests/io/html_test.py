"""HTML of pages and notebooks: escaped, with bars and marked words."""

import math
import re

from jedit.io import html


def test_texts_are_escaped_and_bars_are_relative_to_the_largest():
  cells = [[name, bar] for name, bar in zip('a&', html.bars([1.0, -2.5]), strict=True)]
  table = html.rows(['<name>', 'size'], cells, 'bars')
  assert '<th>&lt;name&gt;</th>' in table and '<td>&amp;</td>' in table
  found = re.findall(r'width:([\d.]+)em"></span> ([-\d.]+)', table)
  assert found == [('3.20', '1'), ('8.00', '-2.5')]


def test_bars_of_nothing():
  assert html.bars([]) == []
  assert all('width:0.00em' in bar for bar in html.bars([0.0, math.nan]))
  assert '–' in html.bars([math.nan])[0]


def test_words_that_the_other_text_lacks_are_marked():
  assert html.marked('in Paris, <b>', 'in Rome, <b>') == (
    'in <mark>Paris,</mark> &lt;b&gt;',
    'in <mark>Rome,</mark> &lt;b&gt;',
  )
  assert html.marked('the same', 'the same') == ('the same', 'the same')
  assert html.marked('', 'all new') == ('', '<mark>all new</mark>')


def test_a_block_carries_its_style_and_pictures():
  page = html.block(html.picture(b'png', 'A <caption>'))
  assert page.startswith('<div class="jedit"><style>') and page.endswith('</div>')
  assert 'src="data:image/png;base64,cG5n"' in page and 'A &lt;caption&gt;' in page
