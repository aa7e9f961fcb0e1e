"""Probes of the hidden states between a prompt and its answer.

    lm, records = jedit.testbed('gptj')
    requests = [record.request for record in records]
    similarity(lm, requests).cosine_CxMxLxN  # PMET: change by attention and by MLP
    contrast(lm, requests).rank_ZxQxOxSxN  # JEEP: true against new object
    windows = windows_of(lm.config.num_layers, width=3)
    trace(lm, requests, windows).recovered_KxQxW  # ROME: layers that recall facts

All are pure functions of a model and requests, batched in few shapes.
"""

from jedit.probes.contrast import Contrast, contrast
from jedit.probes.similarity import Similarity, similarity
from jedit.probes.tracing import Trace, trace, windows_of

__all__ = ['Contrast', 'Similarity', 'Trace', 'contrast', 'similarity', 'trace', 'windows_of']
