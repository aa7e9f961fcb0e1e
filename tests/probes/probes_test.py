"""Probes on small models: what has to hold whatever the numbers are."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jedit
from helpers import editing, tiny_run
from jedit.models import ReplaceAt, site
from jedit.models.encoding import encode
from jedit.probes import contrast, similarity, trace, windows_of
from jedit.probes.axes import POSITIONS
from jedit.types import UserError


@pytest.fixture(scope='module')
def lm(made):
  return jedit.load(made / 'model')


def _requests(count=5):
  rewrites = [tiny_run.record(number)['requested_rewrite'] for number in range(count)]
  return [
    jedit.Request(r['prompt'], r['subject'], r['target_new']['str'], r['target_true']['str'])
    for r in rewrites
  ]


def _states(lm, text):
  """The stream behind every layer of one text, the embeddings first, [S, T, D]."""
  token_1xT = jnp.asarray([lm.tokenizer(text)['input_ids']], jnp.int32)
  taps = [site(layer, 'block_out') for layer in range(lm.config.num_layers)]
  _, seen = lm.model(token_1xT, taps=taps)
  embedded = lm.params['embed']['embedding'][token_1xT]
  return np.stack([np.asarray(x)[0] for x in (embedded, *(seen[name] for name in taps))])


def test_probabilities_and_ranks_are_those_of_one_text_at_a_time(lm):
  requests = _requests()
  found = contrast(lm, requests, words={'cities': ['Paris', 'Zürich']})
  assert found.prob_ZxQxOxSxN.shape == (2, 2, 2, lm.config.num_layers + 1, len(requests))
  for n, request in enumerate(requests):
    states_SxTxD = _states(lm, request.text)
    for z, final_norm in enumerate((False, True)):
      states_SxQxD = jnp.asarray(states_SxTxD[:, found.position_QxN[:, n]])
      logits = np.asarray(lm.model.head(states_SxQxD, final_norm=final_norm))
      prob = np.asarray(jax.nn.softmax(logits, axis=-1))
      for o, token in enumerate(found.first_token_OxN[:, n]):
        ours = found.prob_ZxQxOxSxN[z, :, o, :, n]
        np.testing.assert_allclose(ours, prob[..., token].T, rtol=2e-4, atol=1e-7)
        above = (logits > logits[..., token : token + 1]).sum(axis=-1)
        np.testing.assert_array_equal(found.rank_ZxQxOxSxN[z, :, o, :, n], above.T)
  # At the last state, after the norm, it is the prediction.
  logits_NxV = lm.logits([request.text for request in requests])
  prediction = np.asarray(jax.nn.softmax(logits_NxV, axis=-1))
  wanted = prediction[np.arange(len(requests)), found.first_token_OxN[1]]
  np.testing.assert_allclose(found.prob_ZxQxOxSxN[1, 1, 1, -1], wanted, rtol=1e-4)


def test_words_and_the_rest_share_the_probability_that_the_true_object_leaves(lm):
  requests = _requests()
  words = {'cities': ['Paris', 'Zürich'], 'arts': ['jazz', 'violin']}
  found = contrast(lm, requests, words=words)
  first = {
    word: lm.tokenizer(f'The {word}')['input_ids'][len(lm.tokenizer('The')['input_ids'])]
    for members in words.values()
    for word in members
  }
  assert list(found.words_ZxQxSxN) == ['cities', 'arts', 'rest']
  total, named = 0, set()
  for name, members in words.items():
    tokens = {first[word] for word in members}
    total, named = total + found.words_ZxQxSxN[name] * len(tokens), named | tokens
  is_rest_N = ~np.isin(found.first_token_OxN[0], list(named))
  num_rest_N = lm.config.vocab_size - len(named) - is_rest_N
  total = (
    total + found.words_ZxQxSxN['rest'] * num_rest_N + found.prob_ZxQxOxSxN[:, :, 0] * is_rest_N
  )
  np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_similarity_does_not_depend_on_the_other_prompts(lm):
  requests = _requests()
  together = similarity(lm, requests, top_k=5)
  alone = similarity(lm, requests[2:3], top_k=5)
  for field in dataclasses.fields(together):
    if field.name != 'top_k':
      ours = getattr(together, field.name)[..., 2:3]
      np.testing.assert_allclose(ours, getattr(alone, field.name), atol=1e-5)
  # In GPT-J both modules read the same state, and the stream before block 0 is the embedding.
  token = lm.tokenizer(requests[2].text)['input_ids'][-1]
  embedding = np.asarray(lm.params['embed']['embedding'][token])
  out = lm.model(
    jnp.asarray([lm.tokenizer(requests[2].text)['input_ids']], jnp.int32),
    taps=['0/mlp_out'],
  )[1]['0/mlp_out'][0, -1]
  cosine = embedding @ np.asarray(out) / np.linalg.norm(embedding) / np.linalg.norm(out)
  np.testing.assert_allclose(together.cosine_CxMxLxN[0, 1, 0, 2], cosine, atol=1e-5)


def test_restoring_outputs_brings_back_what_they_carried(lm):
  requests = _requests()
  run = functools.partial(trace, lm, requests, kinds=('hidden', 'mlp', 'attn'), num_noises=2)
  windows = [(0,), (0, 1), (1,)]
  still = run(windows, noise=0.0)
  # Without noise nothing is lost, and putting back what is there changes nothing.
  np.testing.assert_allclose(still.corrupted_N, still.clean_N, rtol=1e-5)
  shape = still.restored_KxQxWxN.shape
  assert shape == (3, 2, 3, len(requests))
  np.testing.assert_allclose(
    still.restored_KxQxWxN, np.broadcast_to(still.clean_N, shape), rtol=1e-5
  )
  noisy = run(windows, noise=3.0)
  np.testing.assert_allclose(noisy.clean_N, still.clean_N, rtol=1e-5)
  assert not np.allclose(noisy.corrupted_N, noisy.clean_N, rtol=1e-3)
  # The last block's state at the last token is all that the head reads ...
  last = noisy.restored_KxQxWxN[0, 1, 2]
  np.testing.assert_allclose(last, noisy.clean_N, rtol=1e-4)
  assert noisy.recovered_KxQxW[0, 1, 2] == pytest.approx(1, abs=1e-3)
  # ... and nothing above it reads what it is at the subject.
  np.testing.assert_allclose(noisy.restored_KxQxWxN[0, 0, 2], noisy.corrupted_N, rtol=1e-4)
  # The noise of a text depends on its number, not on its neighbours.
  fewer = trace(lm, requests[:2], [(1,)], kinds=('hidden', 'mlp', 'attn'), num_noises=2)
  np.testing.assert_allclose(fewer.corrupted_N, noisy.corrupted_N[:2], rtol=1e-4)


def test_every_token_is_traced_alone_and_summed_up_by_its_position(lm):
  """Against a loop over texts, tokens and draws."""
  requests = _requests(2)
  requests.append(jedit.Request('{} lives now in', 'X', 'Rome', 'Paris'))
  found = trace(
    lm, requests, [(0,), (0, 1)], kinds=('mlp',), positions=POSITIONS, num_noises=2, seed=5
  )
  scale = 3.0 * np.std(lm.params['embed']['embedding'])
  for n, request in enumerate(requests):
    row = encode(lm.tokenizer, request.prompt, subject=request.subject)
    first, last, end = row.subject_first, row.subject_last, row.prompt_last
    groups = [
      [first],
      list(range(first + 1, last)),
      [last],
      [last + 1],
      list(range(last + 2, end)),
      [end],
    ]
    token_1xT = jnp.asarray([row.ids], jnp.int32)
    embedding_1xTxD = lm.params['embed']['embedding'][token_1xT]
    taps = ['0/mlp_out', '1/mlp_out']
    _, seen = lm.model(token_1xT, taps=taps)
    answer = encode(
      lm.tokenizer, request.prompt, subject=request.subject, target=request.target_true
    ).target_ids[0]
    for q, tokens in enumerate(groups):
      ours_W = found.restored_KxQxWxN[0, q, :, n]
      if not tokens:
        assert np.isnan(ours_W).all()
        continue
      for w, window in enumerate(found.windows):
        values = []
        for draw, token in itertools.product(range(2), tokens):
          key = jax.random.fold_in(jax.random.fold_in(jax.random.key(5), draw), n)
          noise_TxD = np.zeros(embedding_1xTxD.shape[1:], np.float32)
          for spoilt in range(first, last + 1):
            drawn = jax.random.normal(jax.random.fold_in(key, spoilt), (lm.config.width,))
            noise_TxD[spoilt] = scale * np.asarray(drawn)
          at = jnp.asarray([token], jnp.int32)
          edits = {f'{i}/mlp_out': ReplaceAt(at, seen[f'{i}/mlp_out'][:, token]) for i in window}
          hidden, _ = lm.model(
            token_1xT,
            hidden_NxTxD=embedding_1xTxD + noise_TxD[None],
            edits=edits,
          )
          values.append(jax.nn.softmax(lm.model.head(hidden[:, -1]))[0, answer])
        np.testing.assert_allclose(ours_W[w], np.mean(values), rtol=2e-4)
  shares = found.recovered_KxQxW[0, POSITIONS.index('subject_middle')]
  has_N = ~np.isnan(found.restored_KxQxWxN[0, 1, 0])
  assert 0 < has_N.sum() < len(requests)
  gain_WxN = (found.restored_KxQxWxN[0, 1] - found.corrupted_N)[:, has_N]
  lost = (found.clean_N - found.corrupted_N)[has_N].sum()
  np.testing.assert_allclose(shares, gain_WxN.sum(axis=1) / lost, rtol=1e-5)
  ends = trace(lm, requests, [(0,), (0, 1)], kinds=('mlp',), num_noises=2, seed=5)
  both = found.restored_KxQxWxN[:, [POSITIONS.index(name) for name in ends.positions]]
  np.testing.assert_allclose(ends.restored_KxQxWxN, both, rtol=1e-6)


def test_tracing_keeps_learned_positions():
  lm, requests = editing.language_model('gpt2'), list(editing.REQUESTS[:2])
  found = trace(lm, requests, [(1,)], num_noises=1, noise=0.0)
  prob_NxV = jax.nn.softmax(lm.logits(editing.texts(requests)))
  rows = [encode(lm.tokenizer, r.prompt, subject=r.subject, target=r.target_new) for r in requests]
  expected = [prob_V[row.target_ids[0]] for prob_V, row in zip(prob_NxV, rows, strict=True)]
  np.testing.assert_allclose(found.clean_N, expected, rtol=1e-3)
  np.testing.assert_allclose(found.corrupted_N, found.clean_N, rtol=1e-5)


def test_noise_falls_on_the_subject_alone(lm):
  request = _requests(1)[0]
  early = dataclasses.replace(request, prompt='It rained. {} lives in')
  others = trace(lm, [early], [()], num_noises=1, noise=3.0)
  assert abs(others.corrupted_N[0] - others.clean_N[0]) > 1e-9
  [encoded] = jedit.models.encoding.encode_many(
    lm.tokenizer, [jedit.models.encoding.Row(early.prompt, early.subject)]
  )
  tokens = lm.tokenizer.convert_ids_to_tokens(encoded.ids)
  subject = tokens[encoded.subject_first : encoded.subject_last + 1]
  assert ''.join(subject).replace('Ġ', ' ').strip() == 'Marta Lindqvist'


def test_windows_are_cut_off_at_the_ends():
  assert windows_of(4, 1) == ((0,), (1,), (2,), (3,))
  assert windows_of(4, 3) == ((0, 1), (0, 1, 2), (1, 2, 3), (2, 3))
  assert windows_of(4, 2) == ((0,), (0, 1), (1, 2), (2, 3))
  assert windows_of(5, 4) == ((0, 1), (0, 1, 2), (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4))
  # ROME's code: range(max(0, layer - window // 2), min(num_layers, layer - (-window // 2))).
  for num_layers, width in itertools.product((1, 5, 28), range(1, 12)):
    expected = tuple(
      tuple(range(max(0, layer - width // 2), min(num_layers, layer - (-width // 2))))
      for layer in range(num_layers)
    )
    assert windows_of(num_layers, width) == expected


@pytest.mark.parametrize(
  ('probe', 'words'),
  [
    (lambda lm: similarity(lm, []), 'has no requests'),
    (lambda lm: contrast(lm, [jedit.Request('{} is', 'A', 'b')]), 'no true object'),
    (lambda lm: contrast(lm, _requests(), words={'none': []}), "'none' is empty"),
    (lambda lm: contrast(lm, _requests(), words={'rest': ['a']}), "name 'rest' is reserved"),
    (lambda lm: trace(lm, _requests(), [(2,)]), 'Layer 2 cannot be traced'),
    (lambda lm: trace(lm, _requests(), [(1,)], kinds=('head',)), "Unknown output 'head'"),
    (lambda lm: trace(lm, _requests(), [(1,)], positions=('end',)), "Unknown position 'end'"),
  ],
)
def test_mistakes_are_sentences(lm, probe, words):
  with pytest.raises(UserError, match=words):
    probe(lm)
