r"""JEEP (arXiv:2412.17872), table 1: what three editors of LLaMA-7B answer, side by side.

python -m jedit.main --config=configs/paper/jeep_table1.py:testbed-llama
python -m jedit.main --config=configs/paper/jeep_table1.py --config.statistics.corpus=CORPUS

The answers are in cases.csv and in the report: to the edited prompt, to a paraphrase and to a
prompt about somebody else.
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
