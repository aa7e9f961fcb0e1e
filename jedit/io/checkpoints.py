"""Saved states of long work, written by all hosts at once and restored onto any mesh.

A state holds sharded arrays: every process writes the shards that it has (orbax), and another
number or layout of devices reads them. These directories belong to one run and go with it; files
that people share are safetensors (`jedit.io.storage`).
"""

import contextlib
import functools
import logging
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jedit.io import sealed
from jedit.io.progress import note
from jedit.parallel.checksum import checksum
from jedit.parallel.mesh import fetch, is_first_process, least_over_processes, wait_for_all
from jedit.types import UserError

_SECONDS_PER_SAVE = 60.0
_WORK_PER_SAVE = 20.0  # saving takes at most a twentieth of the time
_ABOUT = 'about.json'  # written last: a state without it does not count
_OWNED = 'jedit.json'  # written first: numbered folders without it are of somebody else
_STATE, _STATES = 'jedit state 1', 'jedit states 1'  # formats


class Checkpoints:
  """States of a run in progress, a directory for each; the newest is kept.

  checkpoints = Checkpoints(directory, key)
  step, state = checkpoints.newest(abstract) or (0, initial)
  for step in range(step, num_steps):
    ...
    checkpoints.save_if_due(step + 1, state)
  checkpoints.remove()
  """

  def __init__(self, directory: pathlib.Path | None, key: str = ''):
    """Starts the clock.

    Args:
      directory: of the states; None saves nothing.
      key: hash of everything that the states depend on, such as settings and data; not needed to
        remove them.

    Raises:
      UserError: if somebody else has numbered folders there.
    """
    self._directory, self._key = directory, key
    self._due = time.monotonic() + _SECONDS_PER_SAVE
    others = None if directory is None else next(directory.glob('[0-9]*'), None)
    if directory is not None and directory.exists() and not directory.is_dir():
      raise UserError(f'{directory} is not a directory; choose another file for the result.')
    if others is not None and not sealed.is_sealed_json(others.parent / _OWNED):
      raise UserError(
        f'{others} was not made by jedit; move it elsewhere, or choose another file for the result.'
      )

  def newest(self, abstract: Mapping[str, Any]) -> tuple[int, dict[str, Any], Any] | None:
    """The state to continue from; states of another key and damaged ones are removed.

    Args:
      abstract: the state with a `jax.ShapeDtypeStruct` for every array; its shardings say where
        the arrays go, and None takes the first device.

    Returns:
      Step, state, and what was saved about it; None where there is no state.
    """
    saved = [] if self._directory is None else list(self._directory.glob(f'[0-9]*/{_ABOUT}'))
    if not saved:
      return None
    folder = max((file.parent for file in saved), key=lambda folder: int(folder.name))
    try:
      about = sealed.read_json(folder / _ABOUT, _STATE)
      found = None if about['inputs'] != self._key else self._restore(folder, abstract, about)
    except sealed.StaleFile as error:
      note(f'jedit: {str(error).partition(";")[0]}; the work begins again.')
      found = None
    if not least_over_processes(int(found is not None)):
      self.remove()
      return None
    assert found is not None
    return int(folder.name), found, about['about']

  def _restore(
    self, folder: pathlib.Path, abstract: Mapping[str, Any], about: Mapping[str, Any]
  ) -> dict[str, Any]:
    """The arrays of a state; raises StaleFile if they are not those that were saved."""
    import orbax.checkpoint as ocp  # here, because it takes a while

    state: dict[str, Any] = {}
    for name, tree in abstract.items():
      leaves, structure = jax.tree.flatten(tree)
      try:
        with _silenced(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
          found = checkpointer.restore(
            (folder / name).absolute(), args=ocp.args.StandardRestore(list(map(_placed, leaves)))
          )
      except Exception as error:  # orbax and tensorstore raise many kinds
        reason = str(error).strip().split('\n')[0]
        raise sealed.damaged(folder, reason) from error
      if _checksums(found) != about['checksums'].get(name):
        raise sealed.damaged(folder, f'{name} does not match its checksums')
      state[name] = jax.tree.unflatten(structure, found)
    return state

  def save_if_due(self, step: int, state: Mapping[str, Any], about: Any = None) -> None:
    """Saves at most once a minute, and for at most a twentieth of the time.

    Args:
      step: number of the state, which grows.
      state: trees of arrays by name, written one after the other: the host holds one at a time.
      about: JSON-able, kept with the state.

    Raises:
      UserError: if the directory cannot be written.
    """
    started = time.monotonic()
    # All processes save together, or none: their clocks differ.
    if self._directory is None or not least_over_processes(int(started >= self._due)):
      return
    import orbax.checkpoint as ocp

    folder, checksums = self._directory / str(step), {}
    is_new = not self._directory.exists()
    # All processes write, or none.
    if not least_over_processes(int(sealed.is_sealed_json(self._directory / _OWNED))):
      sealed.write_json(self._directory / _OWNED, _STATES, {'made_directory': is_new})
    for name, tree in state.items():
      checksums[name] = _checksums(jax.tree.leaves(tree))
      try:
        with _silenced(), ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
          checkpointer.save(
            (folder / name).absolute(),
            args=ocp.args.StandardSave(jax.tree.leaves(tree)),
            force=True,
          )
      except (OSError, ValueError) as error:  # tensorstore raises ValueError for a full disk
        reason = str(error).strip().split('\n')[0]
        raise UserError(
          f'Cannot write {folder} ({reason}); choose a place that is writable and has space.'
        ) from error
    sealed.write_json(
      folder / _ABOUT, _STATE, {'inputs': self._key, 'about': about, 'checksums': checksums}
    )
    self._remove_folders(but=folder.name)
    now = time.monotonic()
    self._due = now + max(_SECONDS_PER_SAVE, _WORK_PER_SAVE * (now - started))

  def remove(self) -> None:
    """Removes the states of a run that is done."""
    if self._directory is not None:
      self._remove_folders()

  def _remove_folders(self, but: str = '') -> None:
    """Removes the states except one; files of somebody else stay."""
    assert self._directory is not None
    wait_for_all()  # until every process has looked at them
    if is_first_process() and self._directory.is_dir():
      for folder in list(self._directory.iterdir()):
        if folder.name.isdigit() and folder.name != but:
          (folder / _ABOUT).unlink(missing_ok=True)  # first, since a kill may come between
          shutil.rmtree(folder, ignore_errors=True)
      if not but:
        self._give_back(self._directory)
    wait_for_all()

  @staticmethod
  def _give_back(directory: pathlib.Path) -> None:
    """Removes the mark of ownership, and the directory if it was made for the states."""
    mark = directory / _OWNED
    if sealed.is_sealed_json(mark):
      about = sealed.kept(mark, sealed.read_json, _STATES) or {}
      mark.unlink()
      if about.get('made_directory') and not any(directory.iterdir()):
        directory.rmdir()


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
  """Keeps orbax from printing, with tracebacks, the errors of which the first becomes a sentence.

  After an error asyncio stays silent: writes that were under way fail at any later time.
  """
  absl, asyncio, hook = logging.getLogger('absl'), logging.getLogger('asyncio'), sys.unraisablehook
  absl.disabled = asyncio.disabled = True
  sys.unraisablehook = functools.partial(_report_unraisable, hook)
  try:
    yield
  finally:
    absl.disabled = False
  asyncio.disabled, sys.unraisablehook = False, hook


def _report_unraisable(report: Callable[[Any], Any], unraisable: Any) -> None:
  """Leaves out what tensorstore's other writes raise after orbax has closed its event loop."""
  if 'Event loop is closed' not in str(unraisable.exc_value):
    report(unraisable)


def _checksums(leaves: list[jax.Array]) -> list[list[int]]:
  return [found[:2].tolist() for found in fetch([checksum(leaf) for leaf in leaves])]


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """With a sharding, which orbax would otherwise take from the devices of the save."""
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
