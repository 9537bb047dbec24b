"""Feeds an engine its requests in the batches it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from llenergymeasure.core.backends.protocol import (
    GenerationOutput,
    GenerationRequest,
    InferenceBackend,
    RequestOutput,
)


class BatchedEngine:
    """An `InferenceEngine` over a backend that takes a batch at a time.

    Args:
        backend: The loaded backend; its `batch_size` says how many requests it takes at once.
        on_batch: Called with each batch's outputs; it runs between two batches and must be quick.
    """

    def __init__(self, backend: InferenceBackend, on_batch: Callable[[Sequence[RequestOutput]], None]) -> None:
        self._backend = backend
        self._on_batch = on_batch

    def run(self, requests: Sequence[GenerationRequest]) -> GenerationOutput:
        """Generate for all `requests` in order, and return when the last token is there.

        Raises:
            BackendError: The engine failed.
        """
        outputs: list[RequestOutput] = []
        for batch in split_into_batches(requests, self._backend.batch_size):
            produced = self._backend.generate(batch).requests
            outputs.extend(produced)
            self._on_batch(produced)
        return GenerationOutput(tuple(outputs))


def split_into_batches(
    requests: Sequence[GenerationRequest], batch_size: int | None
) -> list[Sequence[GenerationRequest]]:
    """The requests in order, `batch_size` at a time; all at once for `None`, where the engine batches by itself."""
    size = batch_size or len(requests)
    return [requests[start : start + size] for start in range(0, len(requests), size)]
