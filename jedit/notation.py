"""Notation: array names carry their axes as a suffix of shape letters, in order: `key_BxF`.

  letter  axis                                 letter  axis
  B       edits in a batch                     H, K    query heads, key/value heads
  P       prompts per edit (contexts)          Dh      head size
  N       rows of a flat batch                 L       layers
  T, S    tokens, tokens attended to           V       vocabulary
  I, O    input and output size of a kernel    C       I + O, what a hypernetwork reads
  D       model width                          R       rank of an update
  F, G    FFN width (the key dimension)        J       target tokens
                                               E       loss evaluations

Einsum subscripts use the same letters in lower case. A function that runs under `vmap` has no B.
Arrays with more than four axes are indexed by words: `prob[norm, position, object, record]`.

  name                     meaning
  key_BxF (k)              input of the edited projection
  value_BxD (v)            output of the edited projection
  delta_BxD (δ)            optimised change of a hidden vector
  z_BxD (z)                target of a hidden vector, v₀ + δ
  residual_BxD (r)         target minus present value
  cov_FxF (C)              second moment E[k kᵀ] of the keys over text tokens
  cov_weight (λ)           weight of C; mom2_update_weight in the released codes
  update_FxD (ΔW)          change of a kernel, in [in, out] order
"""
