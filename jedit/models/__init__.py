"""Model families as pytrees that run: `Model`, its config, its sites and its parameters."""

from jedit.models.config import ModelConfig
from jedit.models.decoder import FAMILIES, init_params
from jedit.models.model import Model
from jedit.models.sites import AddAt, Intervention, ReplaceAt, kernel_path, site
from jedit.models.view import Past, past_taps

__all__ = [
  'FAMILIES',
  'AddAt',
  'Intervention',
  'Model',
  'ModelConfig',
  'Past',
  'ReplaceAt',
  'init_params',
  'kernel_path',
  'past_taps',
  'site',
]
