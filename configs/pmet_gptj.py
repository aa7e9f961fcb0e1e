r"""PMET on GPT-J 6B, CounterFact, with the settings of its released code, xpq-tech/PMET 80643f2.

python -m jedit.main --config=configs/pmet_gptj.py

Model, records and second moments are downloaded unless they are named. This config is the example
to read: configs/edit.py has the other published settings, `--help` and jedit/experiments/schema.py
the other fields. No settings for zsRE were released.
"""

from jedit.experiments.config import default_config, method_section


def get_config():
  c = default_config()
  c.task = 'edit'  # or stats, evaluate, export
  c.seed = 0  # of contexts, random records and sampled texts

  c.model.name = 'gptj-6b'  # for tables
  c.model.path = ''  # Hugging Face directory or hub id; empty: EleutherAI/gpt-j-6b
  c.model.dtype = 'bfloat16'  # of weights and activations; δ, losses and solves are wider
  c.mesh.model = 1  # devices that share each copy of the parameters

  c.data.records = 'multi_counterfact.json'  # path, or name of a public file to download
  c.data.num_edits = 100  # 10,000 in the paper
  c.data.selection = 'first'  # or random, with the seed

  c.method = method_section(
    'pmet',
    layers=(3, 4, 5, 6, 7, 8),  # δ is at the last one
    cov_weight=6000.0,  # λ, weight of the second moments
    learning_rate=0.2,  # of Adam
    num_steps=30,  # evaluations of the loss; the last takes no step
    clip_factor=0.75,  # ‖δ‖ <= 0.75 ‖v₀‖
    weight_decay=0.5,  # weight of the term ‖δ‖ / ‖v₀‖²
    kl_factor=1.0,  # weight of the KL term at "{subject} is a"
    nll_switch=True,  # the released code's adaptive loss factor; False: eq. 10
    stop_loss=0.05,  # early stopping
    schedule='sqrt',  # share of the residual per layer, eq. 13; 'even' is the ablation
    optimise=('attn', 'mlp'),  # outputs with a δ
    write=('mlp',),  # kernels to update
  )

  c.statistics.corpus = ''  # text for second moments; empty: those of ROME and MEMIT
  c.statistics.max_documents = 100_000  # articles
  c.statistics.row_tokens = 2048  # the model's context, at which articles are truncated
  c.contexts = ''  # path of a contexts.json; empty samples prefixes from the model

  c.edit.mode = 'together'  # or in batches: separate (of the original model) or sequential
  c.edit.edits_per_batch = 1  # records of such a batch
  c.edit.target_batch_size = 0  # edits optimised at once; 0 fits it to the device

  c.evaluation.unedited = 1000  # prompts about unedited subjects
  c.evaluation.samples = 3  # texts generated before and after
  c.evaluation.generation_interval = 0  # 10 measures fluency as the papers do, and takes longer
  return c
