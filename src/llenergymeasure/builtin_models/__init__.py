"""Models that the package makes itself: real architectures with seeded random weights, for demos and tests.

`builtin/tiny-llama` is a Llama of 5 million parameters. Its configuration and tokenizer are files of this package, its
weights are made on first use, and then it is a directory like any other model's, loaded through `from_pretrained`.
"""

from __future__ import annotations

from llenergymeasure.builtin_models.store import builtin_models, materialise, packaged_files

__all__ = ["builtin_models", "materialise", "packaged_files"]
