"""Train the built-in model's tokenizer on the bundled prompts: a byte-level BPE of 4,096 tokens.

    python scripts/build_tokenizer.py            writes builtin_models/tiny_llama/tokenizer.json

Needs the `tokenizers` package. Training is deterministic: the same prompts give the same file.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "llenergymeasure"
PROMPTS = PACKAGE / "datasets" / "builtin" / "aienergyscore.jsonl"
OUTPUT = PACKAGE / "builtin_models" / "tiny_llama" / "tokenizer.json"

VOCAB_SIZE = 4096
PAD, BOS, EOS = "<|pad|>", "<|bos|>", "<|eos|>"


def train(texts: Iterable[str]) -> Tokenizer:
    """Train on `texts`. Every byte is a token of its own, so that no text is out of reach; BOS opens each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return tokenizer


def read_prompts(path: Path) -> list[str]:
    """Prompts of a JSON Lines file."""
    return [json.loads(line)["prompt"] for line in path.read_bytes().split(b"\n") if line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="where to write (default: into the package)")
    arguments = parser.parse_args()
    train(read_prompts(PROMPTS)).save(str(arguments.output))


if __name__ == "__main__":
    main()
