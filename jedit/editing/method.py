"""The protocol of editing methods: all that the driver knows of them."""

from collections.abc import Sequence
from typing import Protocol

from jedit.editing.context import EditContext
from jedit.editing.result import EditResult
from jedit.models import ModelConfig
from jedit.types import Kernel, Request


class Method(Protocol):
  """An editing method: settings that turn requests into a patch.

  Whatever has these members is a method; the driver (`jedit.edit`) looks at nothing else. A method
  that wants sampled prefix contexts also has `prefixes`, a kind of `jedit.editing.contexts`; one
  that edits with a trained editor (`jedit.train_editor`) has `uses_editor`, which is True.
  """

  @property
  def name(self) -> str:
    """Name in tables and files."""
    ...

  @property
  def kernels(self) -> tuple[Kernel, ...]:
    """Kernels whose second moments the method needs; empty if it needs none."""
    ...

  def check(self, config: ModelConfig, num_edits: int) -> None:
    """Raises UserError if the method cannot write so many edits at once into such a model."""
    ...

  def edit(self, context: EditContext, requests: Sequence[Request]) -> EditResult:
    """Edits all requests in one batch; the driver adds the provenance of the edit to the patch.

    Args:
      context: model, second moments, tokenised texts and settings of the call.
      requests: the batch; some or all of `context.requests`.

    Raises:
      UserError: names the record and layer at fault.
    """
    ...
