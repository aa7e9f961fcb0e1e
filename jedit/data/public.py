"""The public files of ROME and MEMIT by name: records, word counts and second moments.

Sizes and checksums are those that a public mirror of the file states (its Git LFS pointer); None
where no mirror states any. Such a file is checked by its schema when it is read.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# The hosts of ROME and MEMIT serve the same files; the second is the default of most codes.
ROOTS = ('https://memit.baulab.info/data', 'https://rome.baulab.info/data')

_MIT = 'MIT (of the repository kmeng01/memit; the file itself states none)'
_TEXT = 'CC BY-SA 3.0 (text of Wikipedia)'


class PublicFile(NamedTuple):
  """A file below `ROOTS`.

  Attributes:
    folder: of the root that has it, 'dsets' or 'stats'.
    licence: for people.
    num_bytes: its size; of the second moments of GPT-J without the header.
    sha256: its checksum.
  """

  folder: str
  licence: str
  num_bytes: int | None = None
  sha256: str | None = None


class Archives(NamedTuple):
  """Published second moments of one model: an archive per layer, over 100,000 articles.

  Attributes:
    folder: name of the model there.
    module: PyTorch's name of the module whose inputs are the keys of the kernel 'mlp'.
    layers: those that published code downloads.
    num_bytes: of an archive.
    sha256: by layer.
  """

  folder: str
  module: str
  layers: range
  num_bytes: int
  sha256: Mapping[int, str]

  def name(self, layer: int) -> str:
    """Path of a layer's archive below the folder 'stats'."""
    module = self.module.format(layer)
    return f'{self.folder}/wikipedia_stats/{module}_float32_mom2_100000.npz'


ARCHIVES: Mapping[str, Archives] = {
  'gpt2-xl': Archives(
    'gpt2-xl',
    'transformer.h.{}.mlp.c_proj',
    range(48),
    163_841_230,
    {
      13: '1e1d72a1b9e7189f8467743fd8646ab319fdbda7ca1ecd0fe6a15dca639a3e47',
      14: '7bdcc0e938ce49969dc67fb156b3630ca2abddf87721fef3463a4f4d8ce8b345',
      15: '3deb5de5cacf19f63a498cd081d3cf82bc45745677519b84f32590865ede9977',
      16: '02b179b14e7f358e9f4b5c2a741b4cd105d699e06d81a4ddc04403f7ea52c67d',
      17: '34a3ceef99f1b4f9484d6ad0f1f93416e0a1d91ac39d870a6194533b9f35d2a9',
    },
  ),
  'gptj-6b': Archives(
    'EleutherAI_gpt-j-6B', 'transformer.h.{}.mlp.fc_out', range(3, 9), 4 * 16_384**2, {}
  ),
}

RECORDS: Mapping[str, PublicFile] = {
  'counterfact.json': PublicFile(
    'dsets',
    _MIT,
    45_108_470,
    'd017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f',
  ),
  'multi_counterfact.json': PublicFile('dsets', _MIT),
  'zsre_mend_eval.json': PublicFile('dsets', _MIT),
  'known_1000.json': PublicFile('dsets', _MIT),
  'attribute_snippets.json': PublicFile(
    'dsets',
    _TEXT,
    926_285_719,
    '10b5c1cd105e54d5983c72de1b45bfc88bc7af786f7b99def2557886ff23385b',
  ),
  'idf.npy': PublicFile(
    'dsets', _MIT, 11_042_168, 'c073d642589d4ac6432f467230329b36364a01e72de63a77a3624b745b923dda'
  ),
  'tfidf_vocab.json': PublicFile(
    'dsets', _MIT, 31_639_072, '8a78c4f20d8d85dadfd14e283d71af255482ff18aa0eb8a81716024c05ff888b'
  ),
}

FILES: Mapping[str, PublicFile] = {
  **RECORDS,
  **{
    each.name(layer): PublicFile('stats', _MIT, each.num_bytes, each.sha256.get(layer))
    for each in ARCHIVES.values()
    for layer in each.layers
  },
}


def archives_of(model: str, layers: Iterable[int]) -> tuple[str, ...]:
  """Names of the published second moments of a model's MLPs; none unless there are all."""
  published = ARCHIVES.get(model)
  wanted = sorted(set(layers))
  if published is None or not set(wanted) <= set(published.layers):
    return ()
  return tuple(published.name(layer) for layer in wanted)
