"""Opens a page in headless Chromium and says what a reader on a phone would meet."""

import html
import json
import pathlib
import re
import shutil
import subprocess
from typing import Any

NAMES = ('chromium', 'chromium-browser', 'google-chrome')

# The page in a frame as wide as a phone, then a look at it.
_FRAME = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<iframe id="page" srcdoc="{page}" style="width:{width}px;height:800px;border:0"></iframe>
<script>
const frame = document.getElementById('page');
frame.onload = () => {{
  const root = frame.contentDocument.documentElement;
  const images = [...root.querySelectorAll('img')];
  document.body.textContent = 'FOUND' + JSON.stringify({{
    images: images.length,
    loaded: images.filter(image => image.complete && image.naturalWidth > 0).length,
    width: root.clientWidth,
    scroll_width: root.scrollWidth,
    widest: Math.max(0, ...images.map(image => image.getBoundingClientRect().width)),
    text: root.innerText.length,
  }}) + 'END';
}};
</script>"""


def find() -> str | None:
  """The browser's path; None where the machine has none."""
  return next(filter(None, map(shutil.which, NAMES)), None)


def look(
  browser: str, page: pathlib.Path, scratch: pathlib.Path, width: int = 390
) -> dict[str, Any]:
  """What the page is like in a window of `width` pixels, with `errors` of the console."""
  frame = scratch / 'frame.html'
  text = html.escape(page.read_text('utf-8'), quote=True)
  frame.write_text(_FRAME.format(page=text, width=width), encoding='utf-8')
  done = subprocess.run(
    [
      browser,
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-dev-shm-usage',
      '--enable-logging=stderr',
      f'--user-data-dir={scratch / "profile"}',
      '--virtual-time-budget=5000',
      '--dump-dom',
      frame.as_uri(),
    ],
    capture_output=True,
    text=True,
    timeout=100,
    check=True,
  )
  found = re.search('FOUND(.*)END', done.stdout)
  assert found, done.stdout[-500:] + done.stderr[-500:]
  errors = [line for line in done.stderr.splitlines() if 'CONSOLE' in line]
  return {**json.loads(html.unescape(found[1])), 'errors': errors}
