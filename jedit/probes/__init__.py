"""What a model does between a prompt and its answer, read off its hidden states.

    lm, records = jedit.testbed('gptj')
    requests = [record.request for record in records]
    similarity(lm, requests).cosine_CxMxLxN  # PMET: what attention and MLP change
    contrast(lm, requests).rank_ZxQxOxSxN  # JEEP: original against target object
    windows = windows_of(lm.config.num_layers, width=3)
    trace(lm, requests, windows).recovered_KxQxW  # ROME: which layers recall facts

All are pure functions of a model and requests, batched in few shapes.
"""

from jedit.probes.contrast import Contrast, contrast
from jedit.probes.similarity import Similarity, similarity
from jedit.probes.tracing import Trace, trace, windows_of

__all__ = ['Contrast', 'Similarity', 'Trace', 'contrast', 'similarity', 'trace', 'windows_of']
