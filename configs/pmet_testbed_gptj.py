r"""PMET on the shipped GPT-J testbed, a small model that knows a made-up world.

python -m jedit.main --config=configs/pmet_testbed_gptj.py --config.data.num_edits=200
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.task = 'edit'  # or stats, evaluate, export
  c.seed = 0
  c.model = dict(
    name='testbed-gptj',
    path='',  # a Hugging Face directory or hub id; empty for the shipped model of this name
    dtype='float32',
    revision='',  # of a model of the hub; empty for its main branch
  )
  c.data = dict(
    records='',  # a CounterFact, zsRE or EasyEdit file; empty for the records beside the model.
    # Public files, such as multi_counterfact.json, are downloaded where only their name is given.
    kind='',  # told from the file
    num_edits=100,
    selection='first',  # or random, with the seed
    unique_subjects=False,  # passes over records about subjects that came before
    directory='',  # where public files lie or go; empty for ~/.cache/jedit/data
    mirrors='',  # addresses to download from first
  )
  c.method = dict(
    name='pmet',
    layers=(2, 3, 4),
    cov_weight=20.0,  # λ
    learning_rate=0.3,
    num_steps=80,
    clip_factor=50.0,  # ‖δ‖ <= 50 ‖v₀‖
    weight_decay=0.01,  # the norms of a small model are small, and this term divides by them
    kl_factor=0.0625,
  )
  c.contexts = ''  # a contexts.json; empty samples from the model
  c.targets = ''  # a directory for runs that share optimised targets; empty for the workdir
  c.statistics = dict(
    corpus='',  # text, JSON lines, parquet or a directory; empty for the text beside the model
    dataset='',  # or a dataset of the Hugging Face hub, ...
    dataset_config='',  # ... its config, such as a Wikipedia dump
    column='text',  # the field of the text, where there are fields
    streaming=False,  # reads the dataset while it goes instead of storing it first
    max_documents=0,  # drawn with the seed; 0 for all
    seed=0,
    part='',  # '2/8' for the second eighth, where several runs share the work
    fast=False,  # few tokens: 10 per component of a key
    max_document_tokens=0,  # longer documents are cut; 0 cuts at a row
    file='',  # where to keep them for other runs too, or published ones; empty for the workdir
    row_tokens=0,  # 0 for the model's positions, at most 512
    batch_tokens=8192,
  )
  c.edit = dict(
    batch_size=0,  # edits optimised at once; 0 takes what suits the device
    mode='together',  # or batches of `size`: separate (each on the original model), sequential
    size=1,
    accumulate_keys=False,  # a sequence also preserves the keys of its earlier batches
    canary=50,  # records whose neighbourhood a sequence watches; it stops ...
    min_neighborhood=0.0,  # ... below this percentage
    max_growth=0.0,  # ... or where a kernel has moved by more than this part of its norm; 0: never
  )
  c.evaluation = dict(
    unedited=1000,  # questions about subjects that are not edited
    samples=3,  # texts generated before and after
    new_tokens=30,
    generation_interval=0,  # measures generated texts of every n-th case_id; 0 for none, papers 10
    generation_tokens=100,  # with the prompt
    snippets='',  # attribute_snippets.json, for consistency and essence
    idf='',  # idf.npy and tfidf_vocab.json; empty counts the words of the snippets
    vocabulary='',
    reencode=False,  # zsRE's token accuracy as the published code has it
  )
  c.patches = ''  # evaluate, export: files or workdirs; empty for the patch in the workdir
  c.export = dict(path='', dtype='')  # empty for `model` in the workdir, and dtypes as loaded
  return c
