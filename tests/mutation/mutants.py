"""Single changes of the numerical modules, each of which some test must catch."""

from collections.abc import Mapping
from typing import NamedTuple


class Mutant(NamedTuple):
  """One change of one file.

  Attributes:
    file: under `jedit/`.
    old: text that occurs once in the file.
    new: the text in its place.
    tests: test files under `tests/`, separated by spaces; one of their tests must fail.
  """

  file: str
  old: str
  new: str
  tests: str

  def __str__(self) -> str:
    return f'{self.file}: {self.old} -> {self.new}'


Table = Mapping[tuple[str, str], tuple[tuple[str, str], ...]]  # (file, tests): ((old, new), ...)


def _mutants(table: Table) -> tuple[Mutant, ...]:
  return tuple(
    Mutant(file, old, new, tests)
    for (file, tests), changes in table.items()
    for old, new in changes
  )


# In the round of every change; a second or two each.
_FAST: Table = {
  ('solvers/penalty.py', 'solvers/solve_test.py'): (('left_FxB /= root', 'left_FxB /= 1'),),
  ('solvers/rank_one.py', 'solvers/solve_test.py'): (('u_Fx1 / (through', 'u_Fx1 * (through'),),
  ('solvers/base.py', 'solvers/base_test.py'): (('if not error <= _MAX', 'if error > _MAX'),),
  ('editing/schedule.py', 'editing/schedule_test.py'): (('math.sqrt,', 'float,'),),
  ('editing/loss.py', 'editing/loss_test.py'): (
    ('(square > 0, square, 1.0)', '(True, square, 1.0)'),
  ),
  ('editing/slots.py', 'editing/slots_test.py::test_half_of_the_free_memory_is_left_alone'): (
    ('(2 * per_edit)', '(1 * per_edit)'),
  ),
  ('moments/packing.py', 'moments/packing_test.py'): (
    ('segment[n, at:stop] = number', 'segment[n, at:stop] = 1'),
  ),
  ('models/rotary.py', 'models/formulas_test.py'): (
    ('swap_DhxDh[first, second] = -1, 1', 'swap_DhxDh[first, second] = 1, -1'),
  ),
  ('evals/metrics.py', 'evals/metrics_test.py'): (
    ('wanted_nll < other_nll', 'wanted_nll <= other_nll'),
  ),
  ('parallel/shapes.py', 'parallel/shapes_test.py'): (
    ('token_NxT[n, : len(row)] = row', 'token_NxT[n, -len(row) :] = row'),
  ),
}

_SLOW: Table = {
  ('solvers/least_squares.py', 'solvers/solve_test.py'): (
    ('over_root(earlier_key_NxF, self.cov_weight)', 'earlier_key_NxF'),
  ),
  ('solvers/equality.py', 'solvers/solve_test.py'): (
    ('if num_edits > 1', 'if num_edits > 0'),
    ('float(self.cov_ridge) / self.cov_weight', 'float(self.cov_ridge)'),
    ('_CONSTRAINT_TOLERANCE = 1e-6', '_CONSTRAINT_TOLERANCE = 1e6'),
  ),
  ('solvers/rank_one.py', 'solvers/solve_test.py'): (
    ("self.divide_by == 'bare_key' else", "self.divide_by == '' else"),
  ),
  ('solvers/null_space.py', 'solvers/solve_test.py'): (
    ('1.0, earlier_NxG)', '0.0, earlier_NxG)'),
    ('over_root(self.earlier_key_NxF, self.ridge)', 'self.earlier_key_NxF'),
    ('[:, :num_free]', '[:, num_free:]'),
  ),
  ('solvers/null_space.py', 'solvers/factor_cache_test.py'): (('+ self.ridge * x_FxR', ''),),
  ('solvers/penalty.py', 'solvers/solve_test.py'): (
    ('* jnp.eye(num_edits, dtype=inner_BxB.dtype)', '* jnp.ones_like(inner_BxB)'),
  ),
  ('solvers/penalty.py', 'solvers/factor_cache_test.py'): (
    ('dtype=moved_NxJ.dtype) + moved', 'dtype=moved_NxJ.dtype) - moved'),
    ('multiply(root * x_FxR)', 'multiply(x_FxR)'),
    ('count - count % max', 'count + count % max'),
  ),
  ('solvers/block_factor.py', 'solvers/factor_cache_test.py'): (
    ('if error <= _MAX_REFINED:', 'if True:'),
  ),
  ('solvers/matrix.py', 'solvers/factor_test.py'): (
    ('wanted_F, 1.0)) / 2))', 'wanted_F, 1.0))))'),
  ),
  ('solvers/budget.py', 'solvers/budget_test.py'): (
    ('return 3 * size**2', 'return size**2'),
    ('available - working_bytes(device, size)', 'available'),
  ),
  ('solvers/integer_product.py', 'solvers/integer_product_test.py'): (
    ('carry, digits[level] = total >>', 'carry, digits[level] = 0 * total >>'),
    (
      'unit = jnp.where(jnp.isfinite(largest)',
      'unit = jnp.where(jnp.full_like(largest, True, bool)',
    ),
  ),
  ('solvers/matrix.py', 'solvers/solve_test.py solvers/factor_cache_test.py'): (
    ('ridge * scale_F**2)', 'ridge * scale_F)'),
  ),
  ('solvers/devices.py', 'solvers/solve_test.py'): (('enable_x64(True)', 'enable_x64(False)'),),
  ('solvers/factor_cache.py', 'solvers/factor_cache_test.py'): (
    ('np.array_equal(np.diagonal(cov_FxF), self._diagonal_F)', 'True'),
    ('if bytes_per_device(value) <= room:', 'if True:'),
  ),
  ('solvers/block_cholesky.py', 'solvers/block_factor_test.py'): (
    ('part_TxT -= _product', 'part_TxT += _product'),
  ),
  ('solvers/spectrum.py', 'solvers/solve_test.py'): (
    ('cov_FxF.astype(jnp.float64)', 'cov_FxF.astype(jnp.float32)'),
  ),
  ('editing/loss.py', 'editing/target_test.py'): (
    ('(kl_V - fixed.kl_start_V)', '(fixed.kl_start_V - kl_V)'),
    ('jnp.exp(kl_V) *', 'jnp.exp(fixed.kl_start_V) *'),
    ('.sum(-1) / count_P', '.sum(-1)'),
    ("objective.decay_form == 'released'", 'True'),
    ('is_top_PxJ | ~mask_PxJ', 'is_top_PxJ'),
    ('jnp.where(self.is_first, new, old)', 'new'),
  ),
  ('editing/target.py', 'editing/target_test.py'): (
    ('state.num_evals_B + 1 >=', 'state.num_evals_B >='),
    ('loss_B < stop_loss', 'terms.nll < stop_loss'),
    ('factor * jnp.linalg.norm(init_BxD, axis=-1)', 'factor + 0 * norm_B'),
    ('0.1 * objective.nll_factor', '0.2 * objective.nll_factor'),
    ('terms.kl <= 0.01', 'terms.kl <= 1.0'),
  ),
  ('editing/objective.py', 'editing/target_test.py'): (('b2=0.999', 'b2=0.99'),),
  ('editing/slots.py', 'editing/slots_test.py'): (
    ('out[order] = joined', 'out = joined'),
    ('layers * (kept + stored)', '(kept + stored)'),
  ),
  ('editing/slots.py', 'editing/edit_test.py'): (
    ('& ~np.isfinite(loss_BxE)', '& np.isinf(loss_BxE)'),
  ),
  ('editing/update.py', 'editing/update_test.py'): (
    ('- value_BxD) / divisor', '- value_BxD) * divisor'),
    ('len(region.layers) - index)', 'len(region.layers))'),
    ('self.weight_P[0] * bare', 'self.weight_P[1] * bare'),
    ('(len(g) * len(contexts))', 'len(contexts)'),
    ('values(model, last, update.compare', 'values(model, layer, update.compare'),
    ("self.compared_on == 'contexts'", 'False'),
    ('if region.keys_together:', 'if True:'),
  ),
  ('editing/layerwise.py', 'editing/layerwise_test.py'): (
    ('position_NxT + past.length_N[:, None]', 'position_NxT'),
    ('x[group_N]', 'x[0 * group_N]'),
  ),
  ('editing/region.py', 'editing/region_test.py'): (
    (
      'for layer in self.layers for update in self.updates',
      'for update in self.updates for layer in self.layers',
    ),
  ),
  ('editing/window.py', 'editing/target_test.py'): (
    ("token == 'subject_last')", 'True)'),
    ('return primals[0], tangents[1]', 'return primals[0], 0 * tangents[1]'),
    ('past_N=start_N', 'past_N=start_N - 1'),
    ('position_NxS = start_N[:, None]', 'position_NxS = 0 * start_N[:, None]'),
  ),
  ('editing/blocks.py', 'editing/blocks_test.py'): (('- 1 - start_N', '- start_N'),),
  ('editing/prompts.py', 'editing/prompts_test.py'): (("'{} is a'", "'{} is'"),),
  ('editing/contexts.py', 'editing/contexts_test.py'): (
    ('NUM_TOKENS + num_special', 'NUM_TOKENS'),
  ),
  ('moments/sums.py', 'moments/sums_test.py'): (
    ('((sum_FxG - (new_FxG - taken_FxG)) +', '(0 * sum_FxG +'),
    ('rows] = wide_FxG.T', 'rows] = 0'),
    ("'highest' if key.dtype == jnp.float32 else None", 'None'),
    ('preferred_element_type=jnp.float32', 'preferred_element_type=None'),
  ),
  ('moments/sums.py', 'moments/sums_test.py moments/collect_test.py'): (
    ('wide_FxG += fetch(lost_FxG)', 'wide_FxG -= fetch(lost_FxG)'),
  ),
  ('moments/sums.py', 'moments/collect_test.py'): (('(segment_NxT > 0)[', '(segment_NxT > -1)['),),
  ('parallel/shapes.py', 'parallel/shapes_test.py'): (('-lengths[index])', 'lengths[index])'),),
  ('moments/packing.py', 'moments/packing_test.py'): (
    ('np.arange(len(ids))', 'np.arange(at, stop)'),
    ('if skipped[number] > 0', 'if skipped[number] > 1'),
    ('ids[:cap]', 'ids'),
  ),
  ('moments/collect.py', 'moments/collect_test.py'): (
    ('total.pop(name), at.num_tokens', 'total.pop(name), at.num_documents'),
  ),
  ('moments/files.py', 'moments/files_test.py'): (('part.num_tokens * part.cov', '1 * part.cov'),),
  ('models/layers.py', 'models/formulas_test.py'): (
    ('score * scale', 'score'),
    ('rsqrt(variance + self.eps)', 'rsqrt(variance)'),
    ('mean(-1, keepdims=True) + self.eps)', 'mean(-1, keepdims=True))'),
    ('dtype = wider(x.dtype, jnp.float32)', 'dtype = x.dtype'),
  ),
  ('models/rotary.py', 'models/formulas_test.py'): (
    ('np.full(head_dim, rope.dim // 2)', 'np.full(head_dim, 0)'),
    ('(1 - blend_R) * frequency_R / rope.factor', '(1 - blend_R) * frequency_R'),
  ),
  ('models/layers.py', 'models/layers_test.py'): (
    ('- (num_tokens - stop)', '- num_tokens + start'),
    ('weight[..., num_past:]', 'weight[..., -num_past:]'),
  ),
  ('models/layers.py', 'models/precision_test.py'): (
    ('dtype = wider(query_NxKxGxTxDh.dtype, jnp.float32)', 'dtype = query_NxKxGxTxDh.dtype'),
  ),
  ('models/layers.py', 'models/parity_test.py'): (
    ('read_NxTxD = x_NxTxD if c.parallel else after_NxTxD', 'read_NxTxD = after_NxTxD'),
  ),
  ('models/config.py', 'models/formulas_test.py'): (
    ('1.0 / math.sqrt(config.head_dim)', '1.0 / config.head_dim'),
  ),
  ('models/precision.py', 'models/precision_test.py'): (
    ("else 'highest'", 'else None'),
    ('wider(dtype, at_least)', 'dtype'),
    ('cotangent.astype(left.dtype)', '2 * cotangent.astype(left.dtype)'),
  ),
  ('models/view.py', 'models/decoder_test.py'): (
    ('segment_NxT[:, :, None] ==', 'segment_NxT[:, :, None] >='),
    ('< past_N[:, None]', '<= past_N[:, None]'),
  ),
  ('models/view.py', 'models/formulas_test.py'): (
    ('rank_NxTxS <= sliding_window', 'rank_NxTxS < sliding_window'),
  ),
  ('models/sites.py', 'models/model_test.py'): (
    ('(*steps.get(name, ()), *steps_of(step))', '(*steps_of(step), *steps.get(name, ()))'),
  ),
  ('models/patch.py', 'models/patch_test.py'): (
    ('kernel.astype(jnp.float32) + change', 'kernel + change.astype(kernel.dtype)'),
  ),
  ('models/update.py', 'models/patch_test.py'): (
    ('(rows + columns) < rows', '(rows + columns) > rows'),
    ('(right_RxD @ right_RxD.T)', '(right_RxD @ right_RxD.T).T / 2'),
  ),
  ('models/patch.py', 'editing/batching_test.py'): (
    (
      'np.concatenate([part.right_RxD for part in parts])',
      'np.concatenate([part.right_RxD for part in parts][::-1])',
    ),
  ),
  ('models/generate.py', 'models/generate_test.py'): (('length_N[:, None] - 1)', 'num_tokens)'),),
  ('evals/metrics.py', 'evals/metrics_test.py'): (
    ('np.asarray(before_N) == 1', 'np.asarray(before_N) >= 0'),
    ('100 * mean_of_defined(compare', 'mean_of_defined(compare'),
  ),
  ('evals/scoring.py', 'evals/evaluate_test.py'): (
    ('-total_N / self.length_N', '-total_N'),
    ('stop - start + i, which', 'stop - start + i, 1'),
    ('read(n * size + stop - 1', 'read(n * size + stop - 2'),
    ('.sum(axis=1) == self.length_N', '.sum(axis=1) > 0'),
  ),
  ('evals/estimates.py', 'evals/metrics_test.py'): (
    ('np.std(defined) /', 'np.std(defined, ddof=1) /'),
    ('/ len(mean_K) / mean_K', '/ mean_K'),
  ),
  ('evals/texts.py', 'evals/texts_test.py'): (
    ('2 / 3 * ngram_entropy(words, 2)', '4 / 3 * ngram_entropy(words, 2)'),
    ('(1 + count_W)) + 1', '(1 + count_W))'),
  ),
  ('methods/rome.py', 'methods/reference_test.py'): (
    ("key_average='flat'", "key_average='groups'"),
    ("compared_on='contexts'", "compared_on='bare'"),
  ),
  ('methods/pmet.py', 'methods/reference_test.py'): (
    ('nll_switch=nll_switch', 'nll_switch=False'),
  ),
  ('methods/memit.py', 'methods/reference_test.py'): (
    ("'block', 'block_out'),)", "'block', 'mlp_out'),)"),
  ),
  ('methods/emmet.py', 'methods/reference_test.py'): (
    ('cov_weight, cov_ridge, key_ridge)', 'cov_weight, cov_ridge, 1.0)'),
  ),
  ('methods/alphaedit.py', 'methods/reference_test.py'): (
    ('NullSpace(threshold, ridge)', 'NullSpace(threshold)'),
  ),
  ('methods/jeep.py', 'methods/reference_test.py'): (
    ("layers_high, 'prompt_last'", "layers_high, 'subject_last'"),
  ),
  ('methods/recipe.py', 'methods/reference_test.py'): (('context.earlier_keys,', 'None,'),),
  ('methods/training.py', 'methods/fine_tuning_test.py'): (
    ('(count_N[:, None] * num_rows)', 'num_rows'),
    ('value >= settings.stop_loss', 'value >= 0'),
    ('before[path] - settings.norm_bound', 'leaf - settings.norm_bound'),
  ),
  ('probes/tracing.py', 'probes/probes_test.py'): (
    ('layer - width // 2', 'layer - (width - 1) // 2'),
    ('(index_1xT <= last_Nx1)', '(index_1xT < last_Nx1)'),
    ('window_L[layer] > 0', 'window_L[layer] >= 0'),
  ),
  ('probes/similarity.py', 'golden/probes_test.py'): (('(2 * top_k - shared)', 'top_k'),),
  ('probes/contrast.py', 'probes/probes_test.py'): (
    ('logits_NxQxV > logit', 'logits_NxQxV >= logit'),
  ),
  ('parallel/shapes.py', 'editing/blocks_test.py'): (
    ('for i in waiting) > padding', 'for i in waiting) > 0'),
  ),
  ('parallel/memory.py', 'parallel/memory_test.py'): (
    ("limit - used + int(parts['file'])", 'limit - used'),
  ),
  ('parallel/mesh.py', 'integration/mesh_test.py'): (('shape[0] % mesh.shape[DATA] == 0', 'True'),),
  ('experiments/damage.py', 'experiments/damage_test.py'): (('norm(now - base) /', 'norm(now) /'),),
}

FAST, SLOW = _mutants(_FAST), _mutants(_SLOW)
