"""Requests from whatever has their fields, and kernels by name."""

import pytest

from jedit.types import Kernel, Record, Request, UserError, as_requests

FIELDS = dict(prompt='{} plays the', subject='Ove', target_new='violin')
REQUEST = Request(**FIELDS)
RECORD = Record(7, REQUEST)


@pytest.mark.parametrize(
  'given',
  [
    REQUEST,
    RECORD,
    FIELDS,
    {'prompt': '{} plays the', 'subject': 'Ove', 'target': 'violin'},
    [REQUEST],
    (RECORD,),
    [FIELDS],
    iter([RECORD]),
  ],
  ids=lambda given: type(given).__name__,
)
def test_requests_are_accepted_in_every_form(given):
  assert as_requests(given) == [REQUEST]


def test_forms_can_be_mixed():
  assert as_requests([REQUEST, RECORD, FIELDS]) == [REQUEST] * 3


@pytest.mark.parametrize(
  ('given', 'words'),
  [
    ([], 'nothing to edit; give at least one request'),
    (None, 'The requests are None; give Request objects, records or mappings'),
    (5, 'The requests are 5; give'),
    ('Ove plays the violin', "The requests are 'Ove plays the violin'; give"),
    (['Ove plays the violin'], "'Ove plays the violin' is not a request; give a Request"),
    ([REQUEST, 5], '5 is not a request; give a Request, a Record or a mapping'),
    ({}, "The request .* has no field 'prompt'; a request has prompt, subject, target_new, .*"),
    ({'prompt': '{} is'}, "has no field 'subject'"),
    ({**FIELDS, 'object': 'violin'}, "has a field 'object'; a request has prompt"),
    ({'prompt': '{} is', 'subject': 'Ove'}, "has target_new ''; give a non-empty string"),
    ({**FIELDS, 'target_new': 5}, 'has target_new 5; give a non-empty string'),
    ({**FIELDS, 'prompt': 'He is'}, "prompt 'He is' with 0 places for the subject"),
  ],
)
def test_other_things_are_refused_in_one_sentence(given, words):
  with pytest.raises(UserError, match=words) as error:
    as_requests(given)
  assert str(error.value).endswith('.') and '\n' not in str(error.value)


def test_kernels_are_spelt_one_way():
  kernel = Kernel(5, 'mlp')
  assert str(kernel) == '5/mlp' and Kernel.parse('5/mlp') == kernel
  assert kernel.label == 'the mlp kernel in layer 5'
  assert Kernel.parse(str(Kernel(12, 'attn'))) == Kernel(12, 'attn')
