"""A dry run lists the programs that a run compiles, stage by stage."""

from helpers import editing
from helpers.compilations import compilations, of_dry_run
from jedit.editing.prompts import encode_edits
from jedit.editing.update import RegionRows, dry_run_region
from jedit.methods import pmet
from jedit.models.sharding import abstract_model
from jedit.parallel.program import dry_run


def test_keys_and_residuals_of_a_region():
  lm, method = editing.language_model('gptj'), pmet(layers=(0, 1))
  rows = encode_edits(lm.tokenizer, editing.REQUESTS, editing.CONTEXTS)
  [region] = method.regions
  with dry_run() as run:
    dry_run_region(abstract_model(lm.config), region, rows, editing.CONTEXTS)
  names, planned = of_dry_run(run)
  with compilations(names) as compiled:
    read = RegionRows(rows, region, editing.CONTEXTS)
    for layer in region.layers:
      read.advance(lm.model, layer)
      for kernel in region.kernels:
        if kernel.layer == layer:
          read.keys(lm.model, kernel)
      for update in region.updates:
        read.values(lm.model, region.layers[-1], update.compare)
  assert planned == compiled and {'_embed', '_block', '_shared_block'} <= names
