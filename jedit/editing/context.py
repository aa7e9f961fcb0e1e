"""EditContext: what a method's edit works with, made once per call and shared by its batches."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import transformers

from jedit.editing.blocks import Block, fit_shapes
from jedit.editing.prompts import BARE, Contexts, EditRows, encode_edits
from jedit.editing.slots import Targets
from jedit.io.memo import Memo
from jedit.io.progress import Timers
from jedit.models.language_model import LanguageModel
from jedit.moments.files import SecondMoments
from jedit.solvers import FactorCache
from jedit.types import Kernel, Request


class TokenizedRequests:
  """Token rows of the requests of a call: every text is tokenised once, when rows are first used.

  Args:
    tokenizer: of the model.
    requests: all requests of the call.
    contexts: groups of prefix templates.
    limit: positions of the model; None if it has no limit.
  """

  def __init__(
    self,
    tokenizer: transformers.PreTrainedTokenizerBase,
    requests: Sequence[Request],
    contexts: Contexts,
    limit: int | None,
  ):
    self._arguments = tokenizer, requests, contexts, limit
    self._shapes: dict[tuple[tuple[str, ...], float], list[Block]] = {}

  @functools.cached_property
  def _by_request(self) -> dict[Request, EditRows]:
    tokenizer, requests, contexts, limit = self._arguments
    unique = list(dict.fromkeys(requests))
    return dict(zip(unique, encode_edits(tokenizer, unique, contexts, limit), strict=True))

  def __call__(self, requests: Sequence[Request]) -> list[EditRows]:
    """The rows of some of the requests."""
    return [self._by_request[request] for request in requests]

  def shapes(self, tokens: tuple[str, ...], token_flop: float) -> list[Block]:
    """Padded shapes that fit all requests; see `fit_shapes`."""
    key = tokens, token_flop
    if key not in self._shapes:
      self._shapes[key] = fit_shapes(list(self._by_request.values()), tokens, token_flop)
    return self._shapes[key]


@dataclasses.dataclass(frozen=True, eq=False)
class EditContext:
  """Inputs of a method's edit.

  Attributes:
    lm: the model that is edited, with all earlier patches.
    requests: all requests of the call.
    alongside: the requests that are edited on this same model, those of the batch among them: their
      targets do not depend on each other and can be optimised together.
    rows: token rows of any of the requests.
    contexts: groups of prefix templates.
    second_moments: of the original model; None if the method needs none.
    factors: their Cholesky factors and eigenvectors; None likewise.
    editor: trained for the model, for methods that have `uses_editor`; None for all others.
    seed: of every random draw.
    target_batch_size: edits whose targets are optimised at once; None takes what fits the device.
    memo: keeps finished targets.
    earlier_keys: by kernel, keys [N, F] of earlier batches that are to be preserved as well.
    targets: targets found so far for `alongside`, by stage; batches on one model share them.
    timers: seconds by stage.
  """

  lm: LanguageModel
  requests: tuple[Request, ...]
  alongside: tuple[Request, ...]
  rows: TokenizedRequests
  contexts: Contexts = BARE
  second_moments: SecondMoments | None = None
  factors: FactorCache | None = None
  editor: Any = None
  seed: int = 0
  target_batch_size: int | None = None
  memo: Memo = dataclasses.field(default_factory=lambda: Memo(None))
  earlier_keys: Mapping[Kernel, np.ndarray] = dataclasses.field(default_factory=dict)
  targets: dict[int, Targets] = dataclasses.field(default_factory=dict)
  timers: Timers = dataclasses.field(default_factory=Timers)
