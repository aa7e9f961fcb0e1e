r"""Three probes of a shipped testbed, with their figures: similarity, contrast, causal tracing.

python -m jedit.main --config=configs/probe.py --workdir=runs/probe_testbed_gptj
python -m jedit.main --config=configs/probe.py:llama --workdir=runs/probe_testbed_llama

Another model: --config.model.name=gptj-6b --config.data.records=known_1000.json. Edited models:
--config.patches with patch files or workdirs.
"""

from jedit.experiments.config import default_config


def get_config(testbed='gptj'):
  c = default_config('probe')
  c.model.name = f'testbed-{testbed}'
  c.data.num_edits = 100  # records
  c.probe.window = 3  # layers that tracing restores together; 10 in ROME's figures
  return c
