"""Random numbers that depend on the seed alone and leave the process's own generators as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, stream: int = 0) -> Iterator[None]:
    """Seed Python's, numpy's (if loaded) and PyTorch's generators, and put their states back afterwards.

    Args:
        seed: The experiment's seed, below 2^32.
        stream: Tells apart the uses of one seed, so that two batches do not draw the same numbers.
    """
    derived = random.Random(f"{seed}/{stream}").getrandbits(32)
    python_state = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        try:
            random.seed(derived)
            if numpy:
                numpy.random.seed(derived)
            torch.manual_seed(derived)
            yield
        finally:
            random.setstate(python_state)
            if numpy:
                numpy.random.set_state(numpy_state)
