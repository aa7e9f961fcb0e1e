"""The documentation: links lead to files, commands are understood, examples run."""

import ast
import configparser
import importlib.util
import inspect
import pathlib
import re
import shlex

import pytest
from absl.testing import flagsaver

import jedit
from jedit import experiments, main, testbeds
from jedit.evals import metrics
from jedit.experiments import sweep, tasks
from jedit.experiments.config import read_settings, read_training

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def _blocks(language):
  """(page and number, code) of every fenced block of a language."""
  for page in PAGES:
    for code in re.findall(rf'```{language}\n(.*?)```', page.read_text('utf-8'), re.DOTALL):
      yield page.name, code


def _commands():
  """Command lines of the sh blocks, without comments and variables before the command."""
  for page, code in _blocks('sh'):
    for line in code.replace('\\\n', ' ').splitlines():
      for command in shlex.join(shlex.split(line, comments=True)).split(" '&&' "):
        words = shlex.split(command)
        while words and re.fullmatch(r'[A-Z_]+=.*', words[0]):
          words.pop(0)
        if words:
          yield page, words


COMMANDS = list(_commands())
EXAMPLES = list(_blocks('python'))


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
  for link in re.findall(r'\]\(([^)#\s]+)[^)]*\)', page.read_text('utf-8')):
    if '://' not in link:
      assert (page.parent / link).exists(), f'{page.name} links to {link}, which does not exist'


def _anchors(page):
  """Names of the headings, as GitHub and the site form them."""
  for heading in re.findall(r'^#+ (.*)$', page.read_text('utf-8'), re.MULTILINE):
    yield re.sub(r'[^\w -]', '', heading.lower()).strip().replace(' ', '-')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_to_headings(page):
  for link, anchor in re.findall(r'\]\(([^)#\s:]*)#([^)\s]+)\)', page.read_text('utf-8')):
    assert anchor in _anchors(page.parent / link if link else page), (link, anchor)


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_modules_that_are_named_exist(page):
  text = page.read_text('utf-8')
  for path in re.findall(r'`((?:jedit|configs|tests|benchmarks|launch)/[\w/.]+)`', text):
    assert (ROOT / path).exists(), f'{page.name} names {path}, which does not exist'


def test_the_site_shows_every_page():
  site = (ROOT / 'mkdocs.yml').read_text('utf-8')
  for page in PAGES[1:]:
    assert re.search(rf': {page.name}$', site, re.MULTILINE), f'name {page.name} in mkdocs.yml'


class _Planned(Exception):
  """A run has printed its plan."""


def _plan(arguments, tmp_path, monkeypatch):
  """Goes as far as a run does before it computes: all of its inputs are read and checked."""

  def stop(text):
    assert text.startswith('Plan of')
    raise _Planned

  monkeypatch.setattr(tasks, 'show', stop)
  with flagsaver.flagsaver():
    config, _ = main._parse(['main', *arguments])
  if config.task == 'train':
    read_training(config.to_dict())
  elif config.task == 'sweep':
    sweep.read_cells(config.to_dict())
  elif 'testbed' in config.model.name and not (config.model.path or config.get('editor')):
    # All inputs are shipped.
    with pytest.raises(_Planned):
      experiments.run(config, tmp_path)
  else:
    read_settings(config.to_dict())


@pytest.mark.parametrize(('page', 'words'), COMMANDS, ids=[' '.join(it[1]) for it in COMMANDS])
def test_a_command_is_understood(page, words, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  if words[:3] == ['python', '-m', 'jedit.main']:
    _plan(words[3:], tmp_path, monkeypatch)
  elif words[0].startswith('--config.'):  # to be added to another command
    _plan(['--config=configs/pmet_gptj.py', *words], tmp_path, monkeypatch)
  elif words[:3] == ['python', '-m', 'pytest']:
    assert all((ROOT / word).exists() for word in words[3:] if '/' in word)
  elif words[:2] == ['python', '-m']:
    assert importlib.util.find_spec(words[2])
  elif words[0] == 'python':
    source = (ROOT / words[1]).read_text('utf-8')
    for flag in words[2:]:
      assert re.search(rf"['\"]-*{re.match('--([a-z_]+)', flag)[1]}['\"]", source), flag
  elif words[:2] == ['pip', 'install']:
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    named = {
      extra for text in re.findall(r'\[([\w,]+)\]', ' '.join(words)) for extra in text.split(',')
    }
    assert named <= set(setup['options.extras_require'])
  elif '/' in words[0]:  # other programs, such as vllm, are not the project's
    assert (ROOT / words[0]).is_file(), f'{page} names an absent script'


def _named(node, names):
  """The object behind `a.b.c`, of names that an example imports; None for others."""
  if isinstance(node, ast.Name):
    return names.get(node.id)
  if isinstance(node, ast.Attribute):
    owner = _named(node.value, names)
    return getattr(owner, node.attr) if inspect.ismodule(owner) else None
  return None


@pytest.mark.parametrize(('page', 'code'), EXAMPLES)
def test_an_example_uses_names_and_arguments_that_exist(page, code):
  tree, names = ast.parse(code), {'jedit': jedit}
  for node in tree.body:
    if ast.unparse(node).startswith('from jedit'):
      exec(compile(ast.Module([node], []), page, 'exec'), names)
  for node in ast.walk(tree):
    _named(node, names)
    function = _named(node.func, names) if isinstance(node, ast.Call) else None
    if callable(function):
      values = {word.arg: None for word in node.keywords}
      inspect.signature(function).bind(*node.args, **values)


@pytest.mark.slow
@pytest.mark.parametrize('page', ['README.md', 'architecture.md', 'metrics.md', 'presets.md'])
def test_the_first_example_of_a_page_runs(page, tmp_path, monkeypatch):
  corpus = testbeds.testbed_corpus('gptj')[:300]
  monkeypatch.setattr(testbeds, 'testbed_corpus', lambda name: corpus)
  monkeypatch.setattr(metrics, 'METRICS', dict(metrics.METRICS))
  monkeypatch.chdir(tmp_path)  # for the files that it writes
  code = next(code for name, code in EXAMPLES if name == page)
  code = code.replace('records[:100]', 'records[:2]').replace('Sequential(10)', 'Sequential(2)')
  exec(compile(code, page, 'exec'), {'__name__': 'example', 'jedit': jedit})
