r"""How fast are second moments taken? One packed pass, and a pass for every layer.

python benchmarks/statistics.py --out=statistics.json
python benchmarks/statistics.py --devices=1x1,8x1,4x2,1x8      what devices compute and send

Both sides take the second moments of the MLP keys of the preset's edited layers over the same
documents of mixed length, cut at 500 tokens. Sides:

  engine    `jedit.moments.collect`: documents packed into full rows, all layers at once
  baseline  PyTorch, float32, as the published codes: for each layer a pass over documents that are
            padded to the longest of their batch, stopped behind that layer

Seconds are for all documents, without compiling; the engine's hold its tokenising. Needed FLOP:
blocks up to the highest layer, once, and 2 F² per layer, over tokens that exist.
"""

if __name__ != '__main__':
  # Beside the other scripts this file lies where libraries look for Python's own `statistics`.
  import pathlib
  import sysconfig

  _own = pathlib.Path(sysconfig.get_path('stdlib'), 'statistics.py')
  exec(compile(_own.read_text(), _own, 'exec'))
else:
  import statistics_script
  from absl import app

  app.run(statistics_script.main)
