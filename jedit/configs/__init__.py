"""The shipped configs, which import each other as `jedit.configs.<name>`.

In a clone they lie in the repository's `configs/`; a wheel has those files in place of this one.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[2] / 'configs')]
