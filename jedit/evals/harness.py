"""The model interface of lm-evaluation-harness on a jedit model, edited or not.

lm-evaluation-harness (arXiv:2405.14782) asks a model three things: the log-likelihood of a
continuation after a context, of a whole text, and a continuation up to a stop string. The texts are
tokenised and cut as its Hugging Face backend does it, so the numbers agree; they run through the
batches of `jedit.evals.scoring` and `jedit.models.generate`. The harness has no entry points for
models; this module registers 'jedit' and hands the command line on:

  python -m jedit.evals.harness --model jedit --model_args pretrained=DIR,patches=FILE --tasks piqa
"""

import dataclasses
import functools
import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.evals.scoring import default_tokens, plan_batches, score_plan
from jedit.io.out_of_memory import halve_once
from jedit.io.progress import Progress
from jedit.models.encoding import Encoded
from jedit.models.generate import generate
from jedit.models.language_model import LanguageModel, load
from jedit.models.patch import Patch
from jedit.types import UserError

_NEW_TOKENS = 256  # where a task sets no limit, as in the harness
_ROUND = 64  # new tokens between two searches for stop strings
_LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')

_Pair = tuple[list[int], list[int]]  # tokens of a context and of its continuation


def library(module: str = 'lm_eval') -> Any:
  """A module of lm-evaluation-harness, which is an optional dependency.

  Raises:
    UserError: without the package.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise UserError(
      f"lm-evaluation-harness is not installed ({error}); pip install 'jedit[lm_eval]'."
    ) from error


def register() -> None:
  """Makes 'jedit' a model of the harness: `lm_eval.simple_evaluate(model='jedit', ...)`."""
  library('lm_eval.api.model').LM.register(HarnessModel)
  registry = library('lm_eval.api.registry').model_registry
  if 'jedit' not in registry:
    registry.register('jedit', target=HarnessModel)


class HarnessModel:
  """A `LanguageModel` with the methods of `lm_eval.api.model.LM`.

  Attributes:
    lm: the model.
    max_length: tokens of a row; longer contexts lose their beginning.
    tokens_per_batch: of a forward pass, which bounds the memory; None chooses by device.
    tokenizer: of the model, which the harness looks at.
    rank, world_size: of the harness's processes; jedit spreads a model over devices itself.
    cache_hook: of the harness's cache of responses.
  """

  rank = 0
  world_size = 1

  def __init__(self, lm: LanguageModel, tokens_per_batch: int | None = None):
    """Registers the class with the harness, which must be installed."""
    register()
    self.lm, self.tokenizer = lm, lm.tokenizer
    self.max_length = lm.config.max_positions
    self.tokens_per_batch = tokens_per_batch
    self.cache_hook = library('lm_eval.api.model').CacheHook(None)

  @classmethod
  def create_from_arg_obj(
    cls, arg_dict: Mapping[str, Any], additional_config: Mapping[str, Any] | None = None
  ) -> 'HarnessModel':
    """The model of the harness's `--model_args`.

    Args:
      arg_dict: `pretrained`, a directory or hub id, and optionally `dtype`, `revision`, `patches`
        (files, separated by semicolons) and `tokens_per_batch`.
      additional_config: batch size and device of the harness, which have no meaning here.

    Raises:
      UserError: for other arguments, without a model, and for a patch of another model.
    """
    del additional_config
    known = ('pretrained', 'dtype', 'revision', 'patches', 'tokens_per_batch')
    unknown = [name for name in arg_dict if name not in known]
    if unknown or 'pretrained' not in arg_dict:
      fault = f'has {unknown[0]!r}' if unknown else "lacks 'pretrained'"
      raise UserError(f'model_args {fault}; jedit takes {", ".join(known)}.')
    lm = load(
      arg_dict['pretrained'], arg_dict.get('dtype', 'float32'), arg_dict.get('revision') or None
    )
    for path in str(arg_dict.get('patches', '')).split(';'):
      lm = lm.apply(Patch.load(path)) if path else lm
    return cls(lm, int(arg_dict.get('tokens_per_batch', 0)) or None)

  @classmethod
  def create_from_arg_string(
    cls, arg_string: str, additional_config: Mapping[str, Any] | None = None
  ) -> 'HarnessModel':
    """The same from 'name=value,name=value'."""
    parsed = library('lm_eval.utils').simple_parse_args_string(arg_string)
    return cls.create_from_arg_obj(parsed, additional_config)

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Scores continuations.

    Args:
      requests: with `args` (context, continuation); an empty context stands for the prefix token.

    Returns:
      Log-probability in nats and whether greedy decoding gives the continuation, per request.
    """
    pairs = self._pairs([request.args for request in requests])
    found = self._scores(pairs)
    for request, each in zip(requests, found, strict=True):
      self.cache_hook.add_partial('loglikelihood', request.args, each)
    return found

  def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
    """Log-probability of whole texts after the prefix token, in nats.

    Texts beyond `max_length` are scored in windows, the last one with as much context as fits.
    """
    utils = library('lm_eval.utils')
    texts = [request.args[0] for request in requests]
    pairs: list[_Pair] = []
    owners: list[int] = []
    for n, ids in enumerate(self._ids(texts)):
      windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
      found = [utils.make_disjoint_window(window) for window in windows]
      pairs += found
      owners += [n] * len(found)
    totals = [0.0] * len(texts)
    for n, (logp, _) in zip(owners, self._scores(pairs), strict=True):
      totals[n] += logp
    for text, total in zip(texts, totals, strict=True):
      self.cache_hook.add_partial('loglikelihood_rolling', (text,), total)
    return totals

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Continues contexts up to a stop string, greedily or by sampling.

    Args:
      requests: with `args` (context, settings); settings have 'until', a limit of new tokens,
        'do_sample', 'temperature' and 'top_k'.

    Returns:
      Continuations without the stop string.

    Raises:
      UserError: for other settings that change the text.
    """
    texts = [''] * len(requests)
    alike: dict[str, list[int]] = {}
    for n, request in enumerate(requests):
      alike.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(n)
    with Progress('harness', len(requests), 'texts') as progress:
      for key, numbers in alike.items():
        settings = _Sampling.of(json.loads(key), self.lm.config.vocab_size)
        contexts = [requests[n].args[0] for n in numbers]
        for n, text in zip(numbers, self._continue(contexts, numbers, settings), strict=True):
          texts[n] = text
          self.cache_hook.add_partial('generate_until', requests[n].args, text)
        progress.update(len(numbers))
    return texts

  @property
  def prefix_token_id(self) -> int:
    """The token before a text without context: BOS, or end-of-text where there is none."""
    ids = (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
    found = next((each for each in ids if each is not None), None)
    if found is None:
      raise UserError(
        f'The tokenizer of {self.lm.source} names no BOS and no EOS token to put before a text; '
        'name one in its tokenizer_config.json.'
      )
    return found

  @property
  def tokenizer_name(self) -> str:
    """For the harness's cache of requests."""
    return self.lm.source.replace('/', '__')

  def set_cache_hook(self, cache_hook: Any) -> None:
    """Takes the hook of the harness's `use_cache`."""
    self.cache_hook = cache_hook

  def chat_template(self, chat_template: bool | str = False) -> str:
    """The tokenizer's chat template, for the harness's log."""
    return str(self.tokenizer.chat_template or '') if chat_template else ''

  def apply_chat_template(
    self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
  ) -> str:
    """A chat as one text."""
    return str(
      self.tokenizer.apply_chat_template(
        chat_history,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
        continue_final_message=not add_generation_prompt,
      )
    )

  def _ids(self, texts: Sequence[str], special: bool = True) -> list[list[int]]:
    """Tokens of texts, each different one tokenised once, with BOS if the tokenizer adds one.

    A text that begins with BOS, as chat templates write it, gets no second one.
    """
    bos = self.tokenizer.decode([self.prefix_token_id])
    found: dict[str, list[int]] = {}
    for adds in (True, False):
      chosen = [t for t in dict.fromkeys(texts) if (special and not t.startswith(bos)) == adds]
      if chosen:
        ids = self.tokenizer(chosen, add_special_tokens=adds)['input_ids']
        found |= dict(zip(chosen, ids, strict=True))
    return [found[text] for text in texts]

  def _pairs(self, texts: Sequence[tuple[str, str]]) -> list[_Pair]:
    """Tokens of contexts and continuations, cut where the tokens of the context alone end."""
    moved = []
    for context, continuation in texts:
      bare = context.rstrip() if continuation else context
      # Spaces at the end of a context belong to the first word of the continuation.
      moved.append((bare, context[len(bare) :] + continuation))
    context_ids = self._ids([context for context, _ in moved])
    whole_ids = self._ids([context + continuation for context, continuation in moved])
    alone_ids = self._ids([continuation for _, continuation in moved], special=False)
    pairs: list[_Pair] = []
    for (context, _), before, whole, alone in zip(
      texts, context_ids, whole_ids, alone_ids, strict=True
    ):
      if context:
        pairs.append((before, whole[len(before) :]))
      elif alone[:1] == [self.prefix_token_id]:
        pairs.append((alone[:1], alone[1:]))
      else:
        pairs.append(([self.prefix_token_id], alone))
    return pairs

  def _scores(self, pairs: Sequence[_Pair]) -> list[tuple[float, bool]]:
    """Log-probabilities of continuations and whether all their tokens are on top."""
    rows = []
    for context, continuation in pairs:
      ids = tuple([*context, *continuation][-(self.max_length + 1) :])
      start = len(ids) - len(continuation)
      if start < 1 or not continuation:
        raise UserError(
          f'A task asks for the {len(continuation)} tokens {self.tokenizer.decode(continuation)!r} '
          f'after {self.tokenizer.decode(context[-20:])!r}, and the model scores 1 to '
          f'{self.max_length} after at least one; change the texts of the task.'
        )
      rows.append(Encoded('', ids, None, start - 1, start))

    def run(tokens: int) -> list[tuple[float, bool]]:
      with Progress('harness', len(rows), 'requests') as progress:
        plan = plan_batches(rows, tokens_per_batch=tokens)
        scores = score_plan(self.lm.model, plan, on_batch=progress.update)
      logp_N = -scores.nll_N * scores.length_N
      bad = np.flatnonzero(np.isnan(logp_N))
      if len(bad):
        raise UserError(
          f'The probabilities of {len(bad)} texts of the harness are not numbers, the first that '
          f'of {self.tokenizer.decode(rows[bad[0]].ids)!r}; edit with a lower learning rate, or '
          'load the model in float32.'
        )
      return list(zip(logp_N.tolist(), (scores.exact_N == 1).tolist(), strict=True))

    size = self.tokens_per_batch or default_tokens()
    field = 'evaluation.tokens_per_batch'
    return halve_once(run, size, stage='harness', field=field, most=size)

  def _continue(
    self, contexts: Sequence[str], numbers: Sequence[int], settings: '_Sampling'
  ) -> list[str]:
    """Continuations; texts without a stop string so far go on in rounds."""
    room = self.max_length - settings.num_new
    if room < 1:
      raise UserError(
        f'A task wants {settings.num_new} new tokens and the model has positions for '
        f'{self.max_length}; lower max_gen_toks in its generation_kwargs.'
      )
    rows = [ids[-room:] for ids in self._ids(contexts)]
    end = self.tokenizer.eos_token_id
    stop_ids = [*self._stop_ids(settings.until), *([] if end is None else [end])]
    new: list[list[int]] = [[] for _ in rows]
    texts = [''] * len(rows)
    going, num_rounds = list(range(len(rows))), 0
    while going:
      made = generate(
        self.lm.model,
        [rows[i] + new[i] for i in going],
        max_new_tokens=min(_ROUND, settings.num_new - len(new[going[0]])),
        top_k=settings.top_k,
        temperature=settings.temperature,
        seed=num_rounds,
        stop_ids=stop_ids,
        row_ids=[numbers[i] for i in going],
      )
      num_rounds += 1
      for i, ids in zip(going, made, strict=True):
        new[i] += ids
        texts[i] = self.tokenizer.decode(new[i], skip_special_tokens=True)
      going = [
        i
        for i in going
        if len(new[i]) < settings.num_new
        and new[i][-1] not in stop_ids
        and not any(stop in texts[i] for stop in settings.until)
      ]
    for stop in settings.until:
      texts = [text.split(stop)[0] for text in texts]
    return texts

  @functools.cached_property
  def _pieces(self) -> list[str]:
    """The text of every token."""
    ids = [[each] for each in range(self.lm.config.vocab_size)]
    return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

  def _stop_ids(self, until: Sequence[str]) -> list[int]:
    """Tokens that hold a stop string."""
    return [n for n, text in enumerate(self._pieces) if any(stop in text for stop in until)]


@dataclasses.dataclass(frozen=True)
class _Sampling:
  """The harness's settings of a generation.

  Attributes:
    until: strings that end a text.
    num_new: most new tokens.
    top_k: sample from as many; None for greedy decoding.
    temperature: of the sampling.
  """

  until: tuple[str, ...]
  num_new: int
  top_k: int | None
  temperature: float

  @classmethod
  def of(cls, given: Mapping[str, Any], vocab_size: int) -> '_Sampling':
    """Reads the settings; a temperature of 0 is greedy, as in the harness."""
    left = dict(given)
    until = left.pop('until', None) or []
    limits = [left.pop(name, None) for name in _LIMITS]
    num_new = next((each for each in limits if each is not None), _NEW_TOKENS)
    temperature = float(left.pop('temperature', None) or 0.0)
    samples = left.pop('do_sample', None)
    samples = temperature > 0 if samples is None else bool(samples)
    top_k = int(left.pop('top_k', None) or vocab_size)
    changed = {name: value for name, value in left.items() if value not in (None, 1, 1.0)}
    if samples and changed:
      name, value = next(iter(changed.items()))
      raise UserError(
        f'A task samples with {name}={value!r}, which jedit does not have; set do_sample, '
        'temperature and top_k alone in its generation_kwargs.'
      )
    until = [until] if isinstance(until, str) else until
    stops = tuple(stop for stop in until if stop)
    if not samples:
      return cls(stops, int(num_new), None, 1.0)
    return cls(stops, int(num_new), min(top_k, vocab_size), temperature or 1.0)


if __name__ == '__main__':
  register()
  library('lm_eval.__main__').cli_evaluate()
