r"""PMET on a small GPT-J that was taught the facts of a CounterFact file.

python -m jedit.main --config=configs/train_testbed_counterfact.py \
  --config.records=counterfact.json --workdir=runs/testbed_counterfact
python -m jedit.main --config=configs/pmet_testbed_counterfact.py
"""

from ml_collections import config_dict

from jedit.configs import pmet_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  c = pmet_testbed_gptj.get_config()
  c.model.name = 'testbed-counterfact'
  c.model.path = 'runs/testbed_counterfact/model'
  c.data.num_edits = 200
  return c
