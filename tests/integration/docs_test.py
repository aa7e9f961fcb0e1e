"""The documentation: links lead to files, and the example of a method runs."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
  for link in re.findall(r'\]\(([^)#\s]+)[^)]*\)', page.read_text('utf-8')):
    if '://' not in link:
      assert (page.parent / link).exists(), f'{page.name} links to {link}, which does not exist'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_modules_that_are_named_exist(page):
  text = page.read_text('utf-8')
  for path in re.findall(r'`((?:jedit|configs|tests|benchmarks|launch)/[\w/.]+)`', text):
    assert (ROOT / path).exists(), f'{page.name} names {path}, which does not exist'


@pytest.mark.slow
def test_the_method_of_the_architecture_page_runs(capsys):
  page = (ROOT / 'docs' / 'architecture.md').read_text('utf-8')
  (code,) = re.findall(r'```python\n(.*?)```', page, flags=re.DOTALL)
  exec(compile(code, 'architecture.md', 'exec'), {'__name__': 'example'})
  assert 'efficacy' in capsys.readouterr().out
