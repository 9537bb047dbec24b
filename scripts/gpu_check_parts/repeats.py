"""Whether the same batch gives the same bits twice: by our loop, by the library's `generate`, in single passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpu_check_parts.lines import Book, Line

LINES = (
    Line("repeats.ours", "our loop, five times: the same tokens"),
    Line("repeats.plain", "the library's own `generate`, five times: the same tokens"),
    Line("repeats.prefill", "one forward pass over the prompts, ten times: the same logits to the bit"),
    Line("repeats.synchronised", "our loop, waiting for the device after every layer: the same tokens"),
    Line("repeats.fp32", "our loop in float32, five times: the same tokens"),
)

BATCH, INPUT, OUTPUT, TIMES = 8, 256, 32, 5


def half_precision(rig: Any, book: Book) -> None:
    """The requests of the part `devices`, which differed there."""
    import torch

    from gpu_check_parts.harness import plain_generate
    from llenergymeasure.core.backends.pytorch.generation import pad_left

    with rig.session(_config(rig)) as session:
        model = session.engine.parts.model
        _judge(book, "repeats.ours", lambda: _ours(session))
        _judge(book, "repeats.plain", lambda: plain_generate(session))
        ids, mask = pad_left(session.requests, session.engine.parts.decoding.pad_token_id, model.device)
        with torch.inference_mode():
            logits = [
                model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -1] for _ in range(2 * TIMES)
            ]
        differing = [int((logits[0] != other).sum()) for other in logits[1:]]
        most = max(float((logits[0] - other).abs().max()) for other in logits[1:])
        measured = f"{differing} of {logits[0].numel()} logits differ from the first pass's, by {most:.3g} at most"
        book.judge("repeats.prefill", not any(differing), measured, differing=differing)
        hooks = [layer.register_forward_hook(lambda *_: rig.synchronize()) for layer in model.model.layers]
        _judge(book, "repeats.synchronised", lambda: _ours(session))
        for hook in hooks:
            hook.remove()


def full_precision(rig: Any, book: Book) -> None:
    """Where near ties of logits are rare."""
    with rig.session(_config(rig).model_copy(update={"precision": "fp32"})) as session:
        _judge(book, "repeats.fp32", lambda: _ours(session))


STEPS = (half_precision, full_precision)


def _config(rig: Any) -> Any:
    return rig.config(rig.models.small, n=BATCH, batch=BATCH, input_len=INPUT, output_len=OUTPUT)


def _ours(session: Any) -> list[list[int]]:
    return [list(request.token_ids) for request in session.engine.generate(session.requests).requests]


def _judge(book: Book, key: str, generate: Callable[[], list[list[int]]]) -> None:
    texts = [generate() for _ in range(TIMES)]
    parted = []
    for other in texts[1:]:
        pairs = [zip(one, two, strict=True) for one, two in zip(texts[0], other, strict=True)]
        places = [next((place for place, (a, b) in enumerate(pair) if a != b), None) for pair in pairs]
        parted.append([place for place in places if place is not None])
    measured = (
        f"from the first call differ {[len(places) for places in parted]} of {len(texts[0])}, from token {parted}"
    )
    book.judge(key, not any(parted), measured, parted_at=parted)
