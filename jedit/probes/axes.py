"""Names along the axes of the probes' results."""

BEFORE = ('stream', 'input')  # states before a module: PMET's paper, and its notebook
MODULES = ('attn', 'mlp')
PROJECTIONS = ('embedding', 'head', 'prediction')  # from states to words

NORMS = ('raw', 'normed')  # without and with the final norm in front of the vocabulary layer
OBJECTS = ('true', 'new')
ENDS = ('subject_last', 'prompt_last')  # positions of edits

# Outputs that tracing restores, and their sites.
PLACES = {'hidden': 'block_out', 'attn': 'attn_out', 'mlp': 'mlp_out'}
# ROME's groups of tokens, which overlap: the only token of a subject is its first and its last.
POSITIONS = (
  'subject_first',
  'subject_middle',
  'subject_last',
  'after_first',
  'after_middle',
  'prompt_last',
)
