"""The shipped configs, importable as `jedit.configs.<name>`.

In a clone they live in the repository's `configs/`, where people look for them; a wheel puts
those files here instead of this one.
"""

import pathlib

__path__ = [str(pathlib.Path(__file__).parents[2] / 'configs')]
