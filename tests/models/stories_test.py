"""A real LLaMA, trained by others in another program, tells its story through our loader."""

from helpers import llama2c
from jedit.models import load
from jedit.models.generate import generate

BOS = 1


def test_real_llama_tells_its_story(shared, tmp_path):
  files = shared / 'data' / 'checkpoints'
  llama2c.convert(files / 'stories260K.bin', tmp_path / 'model')
  model, _ = load.load_directory(tmp_path / 'model')
  [new] = generate(model, [[BOS]], max_new_tokens=60)
  text = llama2c.decode(llama2c.read_pieces(files / 'tok512.bin'), new)
  assert text.startswith('Once upon a time, there was a little girl named Lily.'), text
