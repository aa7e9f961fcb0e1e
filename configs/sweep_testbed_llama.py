r"""Every method and ablation on the shipped LLaMA testbed, 200 edits, as one table.

python -m jedit.main --config=configs/sweep_testbed_llama.py --workdir=runs/sweep_testbed_llama
"""

from ml_collections import config_dict

from jedit.configs import sweep_testbed_gptj


def get_config() -> config_dict.ConfigDict:
  return sweep_testbed_gptj.get_config('llama')
