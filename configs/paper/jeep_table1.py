r"""JEEP (arXiv:2412.17872), table 1: answers of LLaMA-7B after three editors, side by side.

python -m jedit.main --config=configs/paper/jeep_table1.py:testbed-llama
python -m jedit.main --config=configs/paper/jeep_table1.py --config.statistics.corpus=CORPUS

cases.csv and the report have the continuations of the edited prompt, a paraphrase and a prompt
about another subject.
"""

from jedit.configs.paper import common


def get_config(scale=''):
  e = common.Experiment(scale, ('llama-7b', 'gptj-6b'))
  cells = [
    ('MEMIT', e.method('memit')),
    ('PMET', e.method('pmet', 'zsre' if e.paper_model == 'llama-7b' else '')),
    ('JEEP', e.method('jeep', 'zsre')),
  ]
  c = e.config(cells, 'JEEP (arXiv:2412.17872), table 1', records='zsre_mend_eval.json')
  c.evaluation.samples = 5  # records
  c.evaluation.new_tokens = 8
  return c
