r"""Trains the shipped GPT-J testbed: 8 layers of width 192 that know a made-up world.

python -m jedit.main --config=configs/train_testbed_gptj.py --workdir=runs/testbed_gptj

Writes runs/testbed_gptj/model. To teach a model the facts of a CounterFact file instead, see
configs/train_testbed_counterfact.py.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
  c = config_dict.ConfigDict()
  c.task = 'train'
  c.seed = 0  # weights, order of the text
  c.records = ''  # a CounterFact file to learn; empty for the made-up world
  c.world = dict(
    seed=0,  # names, facts, records
    num_subjects=480,
    num_edited=240,  # have a record each; neighbourhoods are about the others
    name_words=2,
    own_last_names=False,  # many share one: only the whole name says who is meant
    num_untrained=2,  # phrasings of each relation never trained for a given subject, of 8
  )
  c.model = dict(
    family='gptj',
    num_layers=8,
    width=192,
    num_heads=6,
    num_kv_heads=6,  # LLaMA only
    ffn_width=1024,
    rotary_dim=16,  # GPT-J only; LLaMA turns whole heads
    vocab_size=1400,
    max_positions=256,
    dtype='bfloat16',  # of the stored weights; training is float32
  )
  c.train = dict(
    num_steps=900,
    num_rows=48,
    num_tokens=64,  # per row
    matrix_lr=0.02,  # of Muon, for the matrices of the blocks
    lr=3e-3,  # of Adam, for embedding, head, biases and norms
    warmup=50,  # steps
    decay_share=1.0,  # of the steps behind it, the last ones, in which learning rates fall
    embedding_std=0.1,  # of the embeddings at the start
    num_few=8000,  # facts at the start about a sixteenth of the subjects, and then about a quarter
    weight_decay=0.05,
    text_weight=0.15,  # loss weight of tokens outside of answers, which weigh 1
    barrier=5,  # names are passed on to later tokens from this layer on only ...
    barrier_share=0.5,  # ... in this share of the rows
    max_measured=40_000,  # prompts whose greedy answers are checked at the end
  )
  return c
