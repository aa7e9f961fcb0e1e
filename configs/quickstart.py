r"""The default: edits facts in the shipped GPT-J testbed with PMET and reports the changes.

python -m jedit.main
"""

from jedit.configs import edit


def get_config():
  return edit.get_config('pmet,testbed-gptj')
