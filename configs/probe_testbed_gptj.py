r"""What the shipped GPT-J testbed does between prompt and answer: three probes with their figures.

python -m jedit.main --config=configs/probe_testbed_gptj.py --workdir=runs/probe_testbed_gptj
"""

from ml_collections import config_dict


def get_config(testbed: str = 'gptj') -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.task = 'probe'
  c.seed = 0  # of drawn records and of tracing's noise
  c.model = dict(
    name=f'testbed-{testbed}',
    path='',  # a Hugging Face directory; empty for the shipped model of this name
    dtype='float32',
  )
  c.data = dict(
    records='',  # CounterFact, zsRE, EasyEdit or known_1000.json; empty for those of the testbed
    kind='',  # told from the file
    num_edits=100,  # records
    selection='first',  # or random, with the seed
  )
  c.probe = dict(
    probes='similarity, contrast, tracing',
    top_k=50,  # words that the Jaccard similarity compares
    words='',  # JSON file with sets of words by name, for the contrast
    window=3,  # layers whose outputs tracing puts back together; ROME's figures have 10
    noise=3.0,  # in standard deviations of the embeddings
    draws=4,  # of the noise
    # Tokens at which tracing puts outputs back. Edits are made at subject_last and prompt_last.
    positions=(
      'subject_first, subject_middle, subject_last, after_first, after_middle, prompt_last'
    ),
  )
  c.patches = ''  # files or workdirs of edits; empty for the model as it is
  return c
