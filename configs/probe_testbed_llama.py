r"""What the shipped LLaMA testbed does between prompt and answer: three probes with their figures.

python -m jedit.main --config=configs/probe_testbed_llama.py --workdir=runs/probe_testbed_llama
"""

from ml_collections import config_dict

from jedit.configs import probe_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  return probe_testbed_gptj.get_config('llama')
