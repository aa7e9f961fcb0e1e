r"""EMMET (arXiv:2403.14236), table 1: single edits in one layer, ROME against MEMIT.

python -m jedit.main --config=configs/paper/emmet_table1.py:testbed-gptj
python -m jedit.main --config=configs/paper/emmet_table1.py --config.statistics.corpus=CORPUS

Other models: `:gpt2-xl`, `:llama-2-7b`. The available text of the paper lacks the numbers of the
table. EMMET with a single edit equals ROME with averaged keys.
"""

from jedit.configs.paper import common


def get_config(scale=''):
  e = common.Experiment(scale, ('gptj-6b', 'gpt2-xl', 'llama-2-7b'), num_edits=1000)
  cells = [
    ('ROME', e.method('rome', 'emmet-paper') | common.chunks(1)),
    ('MEMIT', e.last_layer('memit') | common.chunks(1)),
    ('EMMET', e.last_layer('emmet', 'paper-multilayer') | common.chunks(1)),
  ]
  c = e.config(cells, 'EMMET (arXiv:2403.14236), table 1', base='memit', records='counterfact.json')
  c.data.selection = 'random'
  return c
