r"""The default: PMET edits facts in the shipped GPT-J testbed and reports what changed.

python -m jedit.main
"""

from jedit.configs import edit


def get_config():
  return edit.get_config('pmet,testbed-gptj')
