"""The editing method of both hypernetworks: settings that edit with a trained editor."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from jedit.editing.context import EditContext
from jedit.editing.result import EditResult
from jedit.hypernetworks.edit import edit
from jedit.hypernetworks.settings import Settings
from jedit.models import ModelConfig
from jedit.types import Kernel, Request


@dataclasses.dataclass(frozen=True)
class HyperNetwork(Settings):
  """MEND or MALMEN; built by `mend` and `malmen`, trained by `jedit.train_editor`."""

  kernels: ClassVar[tuple[Kernel, ...]] = ()  # needs no second moments
  uses_editor: ClassVar[bool] = True

  def check(self, config: ModelConfig, num_edits: int) -> None:
    """Raises UserError for a kernel that the model does not have; edits may be of any number."""
    del num_edits
    self.plan(config)

  def edit(self, context: EditContext, requests: Sequence[Request]) -> EditResult:
    """Turns the gradients of the edits into one update.

    Returns:
      A patch of low-rank updates; its provenance has the editor's id, the number of rows and the
      step size of every kernel.

    Raises:
      UserError: without an editor, for one of another model or other kernels, and for losses and
        updates that are not finite.
    """
    return edit(context, requests, self)
