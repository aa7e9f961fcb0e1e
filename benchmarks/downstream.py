r"""Tasks of lm-evaluation-harness: jedit's model interface and the harness's Hugging Face backend.

  python benchmarks/downstream.py --out=downstream.json
  python benchmarks/downstream.py --num_documents=32 --batch_size=32

Both answer the same requests on the same float32 weights: four choices after each of the contexts
(as HellaSwag and ARC ask), one letter of four after each (as MMLU does), whole texts (as WikiText
does), and continuations up to a line break (as question answering does). Implementations:

  engine        `jedit.evals.harness.HarnessModel`
  transformers  `lm_eval.models.huggingface.HFLM`, sorted by length, --batch_size requests at once

Both need pip install 'jedit[lm_eval]', the second one PyTorch, accelerate and peft as well. Needed
FLOP are those of the distinct contexts with their continuations, and of the generated tokens.
"""

from common.command_line import Parser, whole
from common.runner import FLAGS, Benchmark, main

BENCHMARK = Benchmark(
  name='downstream',
  prepare='common.downstream_workload:prepare_requests',
  implementations={
    'engine': 'implementations.downstream_jax:Engine',
    'transformers': 'implementations.downstream_torch:HuggingFace',
  },
)
PARSER = Parser(__doc__, *FLAGS)
PARSER.add('num_documents', whole(1), 64, 'documents of each kind of request')
PARSER.add('num_words', whole(1), 60, 'words of the longest context')
PARSER.add('num_new', whole(1), 32, 'most new tokens of a continuation')
PARSER.add('batch_size', whole(1), 16, 'requests at once of the Hugging Face backend')

if __name__ == '__main__':
  main(BENCHMARK, PARSER)
