"""Exports of a run: the edited model as a directory, or its patches as a LoRA adapter."""

import pathlib
from typing import Any

from jedit.experiments.schema import Settings
from jedit.experiments.workdir import Workdir
from jedit.io import sealed
from jedit.io.storage import to_json
from jedit.models.language_model import LanguageModel
from jedit.models.patch import merge

_MODEL, _ADAPTER = 'jedit export 1', 'jedit adapter 1'  # formats


def export_model(edited: LanguageModel, settings: Settings, workdir: Workdir) -> dict[str, Any]:
  """Writes the edited model as a Hugging Face directory; returns dtype and rounding errors."""
  wanted = settings.export
  path = wanted.path or str(workdir / 'model')
  same = {**_made_of(edited, path), 'dtype': wanted.dtype or edited.config.dtype}
  done = _finished(workdir / 'export.json', _MODEL, same)
  if done is not None:
    return done
  with workdir.stage('export'):
    written = edited.export(path, dtype=wanted.dtype or None)
  made = {**same, 'rounding': written.rounding}
  sealed.write_json(workdir / 'export.json', _MODEL, made)
  return to_json(made)


def export_adapter(edited: LanguageModel, settings: Settings, workdir: Workdir) -> dict[str, Any]:
  """Writes the patches as one LoRA adapter; returns ranks and truncation errors by kernel."""
  wanted = settings.export
  path = wanted.path or str(workdir / 'adapter')
  same = {**_made_of(edited, path), 'max_rank': wanted.max_rank}
  done = _finished(workdir / 'adapter.json', _ADAPTER, same)
  if done is not None:
    return done
  patches = edited.patches
  patch = patches[0] if len(patches) == 1 else merge(patches)
  with workdir.stage('adapter'):
    written = patch.to_lora(path, wanted.max_rank or None, edited.config.family)
  made = {**same, 'ranks': written.ranks, 'errors': written.errors}
  sealed.write_json(workdir / 'adapter.json', _ADAPTER, made)
  return to_json(made)


def _made_of(edited: LanguageModel, path: str) -> dict[str, Any]:
  return {
    'path': path,
    'model': edited.fingerprint,
    'patches': [each.id for each in edited.patches],
  }


def _finished(file: pathlib.Path, format: str, same: dict[str, Any]) -> dict[str, Any] | None:
  """What an earlier run wrote of the same model with the same settings, if it is still there."""
  done = sealed.kept(file, sealed.read_json, format) or {}
  is_same = {name: done.get(name) for name in same} == same
  return done if is_same and pathlib.Path(same['path']).is_dir() else None
