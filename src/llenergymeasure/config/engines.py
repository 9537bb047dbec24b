"""The names that `backend` may have: this package's engines, and those that installed packages register."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import AfterValidator, WithJsonSchema

from llenergymeasure.config.open_choice import OpenChoice
from llenergymeasure.config.ssot import BACKENDS, BACKENDS_GROUP

_ENGINES: Final = OpenChoice(BACKENDS, BACKENDS_GROUP)

known_backends: Final = _ENGINES.known


def no_batch_setting(backend: Any) -> str:
    """Why a batch size cannot be set for `backend` by the name that means the same on every engine."""
    if backend in known_backends():
        return f"batch_size: backend {backend!r} has no such field. Set it in passthrough_kwargs, under its own name."
    return f"batch_size: backend {backend!r} is unknown. Use one of: {', '.join(known_backends())}."


BackendName = Annotated[str, AfterValidator(_ENGINES.check), WithJsonSchema(_ENGINES.json_schema())]
