r"""The default: PMET edits facts in the shipped GPT-J testbed and shows what changed.

python -m jedit.main
"""

from jedit.configs import pmet_testbed_gptj

get_config = pmet_testbed_gptj.get_config
