"""Model families as pure functions of their parameters: `forward`, `head`, `init_params`."""

from jedit.models.config import ModelConfig
from jedit.models.decoder import FAMILIES, Past, forward, functions, head, init_params, past_taps
from jedit.models.model import Model
from jedit.models.sites import AddAt, Intervention, ReplaceAt, kernel_path, site

__all__ = [
  'FAMILIES',
  'AddAt',
  'Intervention',
  'Model',
  'ModelConfig',
  'Past',
  'ReplaceAt',
  'forward',
  'functions',
  'head',
  'init_params',
  'kernel_path',
  'past_taps',
  'site',
]
