r"""Probes a shipped testbed: similarity, contrast and causal tracing, with figures.

python -m jedit.main --config=configs/probe.py --workdir=runs/probe_testbed_gptj
python -m jedit.main --config=configs/probe.py:llama --workdir=runs/probe_testbed_llama

For another model, add --config.model.name=gptj-6b --config.data.records=known_1000.json; for an
edited one, add --config.patches with patch files or workdirs.
"""

from jedit.experiments.config import default_config


def get_config(testbed='gptj'):
  c = default_config('probe')
  c.model.name = f'testbed-{testbed}'
  c.data.num_edits = 100  # records
  c.probe.window = 3  # layers that tracing restores together; 10 in ROME's figures
  return c
