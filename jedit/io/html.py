"""HTML of pages and notebooks: style inside, pictures as data, every text escaped."""

import base64
import difflib
import html
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jedit.io import storage
from jedit.io.storage import to_json

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem;
  color: #222; background: #fff; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }}
h2 {{ font-size: 1.2rem; margin-top: 2rem; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right;
  vertical-align: top; white-space: nowrap; }}
th:first-child, td:first-child, .text td, .text th {{ text-align: left; }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: #fff; }}
.text td {{ white-space: normal; min-width: 5rem; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; height: auto; }}
figcaption, .note {{ color: #555; font-size: .9rem; }}
pre {{ background: #f5f5f5; padding: 1rem; overflow-x: auto; font-size: 13px; }}
summary {{ cursor: pointer; }}
@media (max-width: 36rem) {{
  body {{ padding: .75rem; }}
  table {{ font-size: 13px; }}
  th, td {{ padding: .2rem .35rem; }}
}}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


# Of objects in notebooks, whose own colours stay: readers have light and dark ones.
_BLOCK = """<style>
.jedit { font: 14px/1.45 system-ui, sans-serif; overflow-wrap: break-word; }
.jedit p { margin: .3rem 0; }
.jedit .note { opacity: .75; font-size: 13px; }
.jedit .wide { overflow-x: auto; margin: .4rem 0; }
.jedit table { border-collapse: collapse; font-variant-numeric: tabular-nums; border: 0; }
.jedit th, .jedit td { padding: .2rem .7rem .2rem 0; border: 0; text-align: right;
  border-bottom: 1px solid rgba(128, 128, 128, .35); vertical-align: top; white-space: nowrap; }
.jedit th:first-child, .jedit td:first-child, .jedit .text th, .jedit .text td { text-align: left; }
.jedit .text td { white-space: normal; min-width: 6rem; max-width: 26rem; }
.jedit .bars th:last-child { text-align: left; }
.jedit td.bar { text-align: left; min-width: 9rem; }
.jedit td.bar span { display: inline-block; height: .65em; min-width: 1px; background: #0072b2; }
.jedit mark { background: rgba(230, 159, 0, .4); color: inherit; border-radius: 2px; }
.jedit figure { margin: .4rem 0; }
.jedit img { max-width: 100%; height: auto; background: #fff; }
.jedit figcaption { opacity: .75; font-size: 13px; max-width: 50rem; }
</style>"""
_BAR_WIDTH = 8.0  # of the longest bar, in em


class Raw(str):
  """Text that is HTML already; any other text of a cell is escaped."""


def write(workdir: pathlib.Path, title: str, parts: Sequence[str]) -> None:
  """Writes report.html in `workdir`; `parts` are HTML."""
  text = _PAGE.format(title=html.escape(title), body='\n'.join(parts))
  storage.write_text(workdir / 'report.html', text)


def heading(text: str) -> str:
  """The title of a section."""
  return f'<h2>{html.escape(text)}</h2>'


def paragraph(text: str, kind: str = '') -> str:
  """A paragraph of plain text; kind 'note' makes it small."""
  return f'<p class="{kind}">{html.escape(text)}</p>'


def picture(png: bytes, caption: str, width: int | None = None) -> str:
  """An image inside the page, as wide as the page at most.

  Args:
    png: the image.
    caption: below it.
    width: in pixels of the page; None takes those of the image.
  """
  data, words = base64.b64encode(png).decode(), html.escape(caption)
  size = '' if width is None else f' width="{width}"'
  return (
    f'<figure><img alt="{words}"{size} src="data:image/png;base64,{data}">'
    f'<figcaption>{words}</figcaption></figure>'
  )


def folded(title: str, value: Mapping[str, Any] | str) -> str:
  """Text or JSON in a collapsed section."""
  if not isinstance(value, str):
    value = json.dumps(to_json(value), indent=2, ensure_ascii=False)
  return details(title, f'<pre>{html.escape(value)}</pre>')


def details(title: str, content: str) -> str:
  """HTML in a collapsed section."""
  return f'<details><summary>{html.escape(title)}</summary>\n{content}</details>'


def block(*parts: str) -> str:
  """What a notebook shows of an object; `parts` are HTML."""
  return f'<div class="jedit">{_BLOCK}{"".join(parts)}</div>'


def rows(head: Sequence[str], cells: Sequence[Sequence[str]], kind: str = '') -> str:
  """A table in a box that scrolls sideways where the page is narrower.

  Args:
    head: names of the columns.
    cells: rows of texts, or of `Raw` HTML.
    kind: CSS class of the table; 'text' for cells of prose.
  """
  top = ''.join(f'<th>{html.escape(name)}</th>' for name in head)
  lines = [''.join(map(_cell, row)) for row in cells]
  body = ''.join(f'<tr>{line}</tr>' for line in lines)
  return (
    f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead>'
    f'<tbody>{body}</tbody></table></div>'
  )


def _cell(text: str) -> str:
  if isinstance(text, Raw) and text.startswith('<td'):
    return text
  return f'<td>{text if isinstance(text, Raw) else html.escape(text)}</td>'


def bars(values: Sequence[float], digits: int = 4) -> list[Raw]:
  """A cell for each value: a bar, relative to the largest value, and the number."""
  largest = max([abs(value) for value in values if value == value], default=0.0) or 1.0
  cells = []
  for value in values:
    width = _BAR_WIDTH * abs(value) / largest if value == value else 0.0
    number = f'{value:.{digits}g}' if value == value else '–'
    cells.append(
      Raw(f'<td class="bar"><span style="width:{width:.2f}em"></span> {html.escape(number)}</td>')
    )
  return cells


def marked(before: str, after: str) -> tuple[Raw, Raw]:
  """Both texts, with the words marked that the other one lacks."""
  words = [re.findall(r'\s+|[^\s]+', text) for text in (before, after)]
  match = difflib.SequenceMatcher(None, words[0], words[1], autojunk=False)
  found: tuple[list[str], list[str]] = ([], [])
  for kind, *bounds in match.get_opcodes():
    for side, start, stop in ((0, *bounds[:2]), (1, *bounds[2:])):
      text = html.escape(''.join(words[side][start:stop]))
      if text:
        found[side].append(text if kind == 'equal' else f'<mark>{text}</mark>')
  return Raw(''.join(found[0])), Raw(''.join(found[1]))
