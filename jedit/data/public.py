"""Public files by name: records, and the word counts and second moments of ROME and MEMIT.

Sizes and checksums are those that a public mirror of the file states (its Git LFS pointer), or a
public manifest of a download; None where nobody states any. Such a file is checked by its schema
when it is read.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

# The hosts of ROME and MEMIT serve the same files; the second is the default of most codes.
ROOTS = ('https://memit.baulab.info/data', 'https://rome.baulab.info/data')

_MIT = 'MIT (of the repository kmeng01/memit; the file itself states none)'
_TEXT = 'CC BY-SA 3.0 (text of Wikipedia)'


class PublicFile(NamedTuple):
  """A file below `ROOTS`, or at an address of its own.

  Attributes:
    folder: of the root that has it, 'dsets' or 'stats'; empty for a file with an address.
    licence: for people.
    num_bytes: its size; of the second moments of GPT-J without the header.
    sha256: its checksum.
    address: of the file, where it is not below `ROOTS`.
  """

  folder: str
  licence: str
  num_bytes: int | None = None
  sha256: str | None = None
  address: str = ''


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


def _elsewhere(address: str, num_bytes: int | None = None, sha256: str | None = None) -> PublicFile:
  """A file of a repository that is under MIT."""
  return PublicFile('', 'MIT', num_bytes, sha256, address)


_HUB = 'https://huggingface.co/datasets/zjunlp/KnowEdit/resolve/main/benchmark'
_RIPPLE = 'https://raw.githubusercontent.com/edenbiran/RippleEdits/main/data/benchmark'
_MQUAKE = 'https://raw.githubusercontent.com/princeton-nlp/MQuAKE/main/datasets'

RECORDS: Mapping[str, PublicFile] = {
  'counterfact.json': PublicFile(
    'dsets',
    _MIT,
    45_108_470,
    'd017056125178a13728594e66a801357a8db9ed7973a7425554bb4271de9fc6f',
  ),
  'multi_counterfact.json': PublicFile('dsets', _MIT),
  'zsre_mend_eval.json': PublicFile(
    'dsets', _MIT, 8_091_864, '8a371d512f8a6ab175db4ef672181d5c0e52da23298cb51e5a2eeea2f89aa9cd'
  ),
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
  'knowedit_wiki_recent.json': _elsewhere(f'{_HUB}/wiki_recent/recent_test.json'),
  'knowedit_wiki_counterfact.json': _elsewhere(
    f'{_HUB}/wiki_counterfact/test_cf.json',
    2_924_593,
    'efc01ba398dfe04975939f729aab45523addb3c6b3cf41d7429ba5de1d45225b',
  ),
  'knowedit_zsre.json': _elsewhere(
    f'{_HUB}/ZsRE/ZsRE-test-all.json',
    1_519_289,
    '0e0214dda853a906ef02bef58c7ce2978af5a962e91fc4a10827e0125459905c',
  ),
  'knowedit_wikibio.json': _elsewhere(f'{_HUB}/WikiBio/wikibio-test-all.json'),
  **{
    f'ripple_edits_{name}.json': _elsewhere(f'{_RIPPLE}/{name}.json')
    for name in ('popular', 'random', 'recent')
  },
  'MQuAKE-CF-3k-v2.json': _elsewhere(
    f'{_MQUAKE}/MQuAKE-CF-3k-v2.json',
    15_383_628,
    'f82091cbb668cef8f2537f79f1768af1840184450b347ff8c344336090ddc71e',
  ),
  'MQuAKE-CF-3k.json': _elsewhere(
    f'{_MQUAKE}/MQuAKE-CF-3k.json',
    16_055_945,
    'ce27a39c39f2983512b9b5578fadea5fbe352e5368f49d64f38d37ce304edc80',
  ),
  'MQuAKE-CF.json': _elsewhere(
    f'{_MQUAKE}/MQuAKE-CF.json',
    44_662_559,
    'fbf1ab9e5243e52da429f7636990096ae0b5f8fbf60f1d4d3a4bf0c9214cd6ea',
  ),
  'MQuAKE-T.json': _elsewhere(
    f'{_MQUAKE}/MQuAKE-T.json',
    8_889_248,
    '58500a1d4aaf9e036c23a1d9dd6be2d73d693e35a695614842f211ea5aff59f2',
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
