"""The notebooks run from top to bottom, and their stored outputs are fit to be read."""

import pathlib
import re
import runpy

import nbformat
import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / 'docs' / 'notebooks').glob('*.ipynb'))
MAX_BYTES = 400_000
BADGE = re.compile(
  r'https://colab\.research\.google\.com/github/([\w.-]+/[\w.-]+)/blob/main/(\S+?)\)'
)
each_notebook = pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.stem)


def _code(path):
  return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == 'code']


@pytest.mark.slow
@each_notebook
def test_a_notebook_runs(path, tmp_path, monkeypatch):
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  execute = runpy.run_path(str(ROOT / 'docs' / 'execute_notebooks.py'))['execute']
  fresh = [cell for cell in execute(path, tmp_path).cells if cell.cell_type == 'code']
  for cell, stored in zip(fresh, _code(path), strict=True):
    kinds = [{output.output_type for output in each.outputs} for each in (cell, stored)]
    assert kinds[0] == kinds[1], f'run: python docs/execute_notebooks.py {path.stem}'


@each_notebook
def test_outputs_are_stored_without_noise(path):
  install, *cells = _code(path)
  assert 'google.colab' in install.source and not install.outputs
  assert [cell.execution_count for cell in cells] == list(range(2, len(cells) + 2))
  assert len([cell for cell in cells if cell.outputs]) >= 2
  for output in (output for cell in cells for output in cell.outputs):
    assert output.output_type != 'error' and output.get('name') != 'stderr'
    text = str(output.get('text', '')) + str(
      {kind: data for kind, data in output.get('data', {}).items() if kind != 'image/png'}
    )
    assert not re.search(r'Warning|site-packages|/(tmp|home|root|work|Users)/', text), text[:500]
  assert path.stat().st_size < MAX_BYTES


def test_all_badges_lead_to_one_repository():
  pages = {path: path.read_text('utf-8') for path in [ROOT / 'README.md', *NOTEBOOKS]}
  found = {path: BADGE.findall(text) for path, text in pages.items()}
  names = [f'docs/notebooks/{path.name}' for path in NOTEBOOKS]
  assert sorted(name for _, name in found[ROOT / 'README.md']) == names
  for path, name in zip(NOTEBOOKS, names, strict=True):
    assert [file for _, file in found[path]] == [name]
  (repository,) = {repository for places in found.values() for repository, _ in places}
  for path in NOTEBOOKS:
    assert f'git+https://github.com/{repository}' in _code(path)[0].source


@each_notebook
def test_links_of_a_notebook_lead_to_files(path):
  cells = nbformat.read(path, 4).cells
  text = '\n'.join(cell.source for cell in cells if cell.cell_type == 'markdown')
  for link in re.findall(r'\]\(([^)#\s]+)[^)]*\)', text):
    assert '://' in link or (path.parent / link).exists(), link
