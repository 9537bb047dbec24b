"""The base of every record in this package, and what several of them share: field types, moments, identities."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import sys
from array import array
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PlainValidator, WithJsonSchema

EnergyMethod = Literal["hardware_counter", "power_integration", "model_estimate"]
"""How joules were found: a meter's own counter, the integral of power samples, or a model (an estimate)."""

EnergyScope = Literal["gpu", "gpu_module", "gpu_board", "cpu_package", "cpu_package_and_dram", "machine_model"]
"""What joules include. `gpu_board`: the parent board of a MIG slice. `machine_model`: CPU and RAM as modelled."""

Methodology = Literal["total", "steady_state", "windowed"]
"""Warm-up off; warm-up run and excluded; only part of the generation counted."""

Confidence = Literal["high", "medium", "low"]
"""How far a counted figure can be trusted."""


class Record(BaseModel):
    """Frozen data between layers: no unknown fields, no NaN, no infinity (JSON has none of the two)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def optional(description: str, ge: int | None = None) -> Any:
    """A field that may be null, and is unless it is given: not measured, not known, not there."""
    return Field(default=None, ge=ge, description=description)


def as_utc(moment: datetime) -> datetime:
    """`moment` in UTC; one without a time zone is taken as UTC."""
    return moment.replace(tzinfo=timezone.utc) if moment.tzinfo is None else moment.astimezone(timezone.utc)


def compute_measurement_config_hash(config: BaseModel) -> str:
    """Identity of what a configuration measures: the same on every machine, process and Python version.

    Unset fields do not count, so that a release which adds an optional field keeps the hashes of old configurations;
    `output_dir` says where results go, not what is measured.

    Args:
        config: An `ExperimentConfig`.

    Returns:
        The first 16 hex digits of SHA-256 over the configuration's JSON with sorted keys.
    """
    fields = config.model_dump(mode="json", exclude_none=True, exclude={"output_dir"})
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def json_ready(value: Any) -> Any:
    """`value` in types that survive a JSON round trip unchanged.

    Tuples and sets become lists, keys and unknown objects (a `torch.dtype`, say) their text, and a float without a JSON
    form the text `inf`, `-inf` or `nan`.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else str(float(value))
    if isinstance(value, Mapping):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((json_ready(item) for item in value), key=str)
    return str(value)


JsonDict = Annotated[dict[str, Any], BeforeValidator(json_ready)]
"""A mapping as it will stand in a JSON file, see `json_ready`."""


def _parse_array(value: object, typecode: Literal["f", "d"]) -> array[float]:
    if isinstance(value, str):
        numbers = array(typecode)
        numbers.frombytes(base64.b64decode(value, validate=True))
        if sys.byteorder == "big":
            numbers.byteswap()
    elif isinstance(value, Iterable):
        try:
            numbers = array(typecode, value)
        except TypeError as error:
            raise ValueError(f"expected numbers: {error}") from error
    else:
        raise ValueError("expected numbers, or their little-endian bytes in base64")
    if not all(map(math.isfinite, numbers)):
        raise ValueError("every number must be finite")
    return numbers


def _encode_array(numbers: array[float]) -> str:
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return base64.b64encode(numbers.tobytes()).decode("ascii")


_TO_BASE64 = PlainSerializer(_encode_array, return_type=str)
_BASE64_SCHEMA = WithJsonSchema({"type": "string", "contentEncoding": "base64"})

if TYPE_CHECKING:
    _FloatArray = array[float]
else:
    _FloatArray = array  # not subscriptable at run time before Python 3.12

Float32Array = Annotated[
    _FloatArray, PlainValidator(lambda value: _parse_array(value, "f")), _TO_BASE64, _BASE64_SCHEMA
]
"""Numbers at 4 bytes each (7 significant digits), for what there is one of per token; base64 in JSON."""

Float64Array = Annotated[
    _FloatArray, PlainValidator(lambda value: _parse_array(value, "d")), _TO_BASE64, _BASE64_SCHEMA
]
"""Numbers at 8 bytes each, for what there is one of per request; base64 in JSON."""
