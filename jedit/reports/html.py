"""Self-contained HTML pages: style inside, pictures as data."""

import base64
import html
import json
import pathlib
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


def picture(png: bytes, caption: str) -> str:
  """An image inside the page."""
  data, words = base64.b64encode(png).decode(), html.escape(caption)
  return (
    f'<figure><img alt="{words}" src="data:image/png;base64,{data}">'
    f'<figcaption>{words}</figcaption></figure>'
  )


def folded(title: str, value: Mapping[str, Any] | str) -> str:
  """Text or JSON in a collapsed section."""
  if not isinstance(value, str):
    value = json.dumps(to_json(value), indent=2, ensure_ascii=False)
  code = html.escape(value)
  return f'<details><summary>{html.escape(title)}</summary>\n<pre>{code}</pre></details>'
