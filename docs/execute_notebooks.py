"""Executes the notebooks of docs/notebooks from top to bottom and stores their outputs.

python docs/execute_notebooks.py [NAME ...]

Needs `pip install -e '.[test]'`. Progress and warnings are not stored.
"""

import argparse
import pathlib
import tempfile

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = pathlib.Path(__file__).parent / 'notebooks'


def execute(path: pathlib.Path, directory: pathlib.Path) -> nbformat.NotebookNode:
  """The notebook with fresh outputs.

  Args:
    path: of the notebook.
    directory: in which its kernel works.

  Raises:
    nbclient.exceptions.CellExecutionError: for a cell that fails.
  """
  notebook = nbformat.read(path, as_version=4)
  NotebookClient(
    notebook,
    timeout=300,  # seconds of a cell
    kernel_name='python3',
    resources={'metadata': {'path': str(directory)}},
    record_timing=False,
    store_widget_state=False,
  ).execute()
  for cell in notebook.cells:
    cell.metadata.clear()
    if cell.cell_type == 'code':
      cell.outputs = [output for output in cell.outputs if _is_kept(output)]
  notebook.metadata = {'kernelspec': notebook.metadata.kernelspec}
  return notebook


def _is_kept(output: nbformat.NotebookNode) -> bool:
  """False for progress: standard error, and widgets that no page shows without their kernel."""
  return output.get(
    'name'
  ) != 'stderr' and 'application/vnd.jupyter.widget-view+json' not in output.get('data', {})


def main() -> None:
  """Executes the notebooks that are named, or all."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help='such as edit_facts; default: all')
  names = parser.parse_args().names or [path.stem for path in sorted(NOTEBOOKS.glob('*.ipynb'))]
  for name in names:
    path = NOTEBOOKS / f'{name}.ipynb'
    with tempfile.TemporaryDirectory() as directory:
      notebook = execute(path, pathlib.Path(directory))
    nbformat.write(notebook, path)
    print(f'{path.name}: {path.stat().st_size / 1e3:.0f} KB')


if __name__ == '__main__':
  main()
