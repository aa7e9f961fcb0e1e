r"""EMMET (arXiv:2403.14236), table 2: single edits over several layers, ROME against MEMIT.

python -m jedit.main --config=configs/paper/emmet_table2.py:testbed-gptj
python -m jedit.main --config=configs/paper/emmet_table2.py --config.statistics.corpus=CORPUS

Other models: `:gpt2-xl`, `:llama-2-7b`. The available text of the paper lacks the numbers of the
table.
"""

from jedit.configs.paper import common


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b', 'gpt2-xl', 'llama-2-7b'), num_edits=1000)
  layers = e.method('memit')['method']['layers']
  cells = [
    ('ROME', e.method('rome', 'emmet-paper', layers=layers) | common.chunks(1)),
    ('MEMIT', e.method('memit') | common.chunks(1)),
    ('EMMET', e.method('emmet', 'paper-multilayer') | common.chunks(1)),
  ]
  c = e.config(cells, 'EMMET (arXiv:2403.14236), table 2', base='memit', records='counterfact.json')
  c.data.selection = 'random'
  return c
