"""Saved states of long work, written by all hosts at once and restored onto any mesh.

A state holds sharded arrays: every process writes the shards that it has (orbax), and another
number or layout of devices reads them. These directories belong to one run and go with it; files
that people share are safetensors (`jedit.io.storage`).
"""

import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax

from jedit.io.storage import read_json, write_json
from jedit.parallel.mesh import is_first_process, least_over_processes, wait_for_all
from jedit.types import UserError

_SECONDS_PER_SAVE = 60.0
_WORK_PER_SAVE = 20.0  # saving takes at most a twentieth of the time
_ABOUT = 'about.json'  # written last: a state without it does not count


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
    """
    self._directory, self._key = directory, key
    self._due = time.monotonic() + _SECONDS_PER_SAVE

  def newest(self, abstract: Mapping[str, Any]) -> tuple[int, dict[str, Any], Any] | None:
    """The state to continue from; states of another key are removed.

    Args:
      abstract: the state with a `jax.ShapeDtypeStruct` for every array; its shardings say where
        the arrays go, and None takes the first device.

    Returns:
      Step, state, and what was saved about it; None where there is no state.

    Raises:
      UserError: if the state cannot be read.
    """
    saved = [] if self._directory is None else list(self._directory.glob(f'[0-9]*/{_ABOUT}'))
    if not saved:
      return None
    import orbax.checkpoint as ocp  # here, because it takes a while

    folder = max((file.parent for file in saved), key=lambda folder: int(folder.name))
    kept = read_json(folder / _ABOUT)
    if kept['key'] != self._key:
      self.remove()
      return None
    state = {}
    for name, tree in abstract.items():
      leaves, structure = jax.tree.flatten(tree)
      try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
          found = checkpointer.restore(
            (folder / name).absolute(), args=ocp.args.StandardRestore(list(map(_placed, leaves)))
          )
      except Exception as error:  # orbax and tensorstore raise many kinds
        reason = str(error).strip().split('\n')[0]
        raise UserError(
          f'The saved state in {folder} cannot be read ({reason}); remove {self._directory} to '
          'begin again.'
        ) from error
      state[name] = jax.tree.unflatten(structure, found)
    return int(folder.name), state, kept['about']

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

    folder = self._directory / str(step)
    for name, tree in state.items():
      try:
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
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
    write_json(folder / _ABOUT, {'key': self._key, 'about': about})
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
      for folder in self._directory.iterdir():
        if folder.name.isdigit() and folder.name != but:
          (folder / _ABOUT).unlink(missing_ok=True)  # first, since a kill may come between
          shutil.rmtree(folder, ignore_errors=True)
      if not but and not any(self._directory.iterdir()):
        self._directory.rmdir()
    wait_for_all()


def _placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """With a sharding, which orbax would otherwise take from the devices of the save."""
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
