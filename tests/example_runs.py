"""The files of examples/ with less to do: the built-in model on the CPU, a few short prompts, no waiting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

QUICK: dict[str, Any] = {
    "model": "builtin/tiny-llama",
    "n": 3,
    "max_input_tokens": 32,
    "max_output_tokens": 4,
    "decoder": {"min_new_tokens": 4},
    "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
    "baseline": {"enabled": False},
    "measurement": {"min_duration_seconds": None},
    "pytorch": {"device": "cpu"},
}


def shortened(name: str, **changes: Any) -> dict[str, Any]:
    """The document of an example, its sections changed and not replaced."""
    document: dict[str, Any] = yaml.safe_load((EXAMPLES / name).read_text())
    for key, value in {**QUICK, **changes}.items():
        old = document.get(key)
        document[key] = {**old, **value} if isinstance(old, dict) and isinstance(value, dict) else value
    if "execution" in document:
        document["execution"] = {"n_cycles": 1, "config_gap_seconds": 0, "cycle_gap_seconds": 0}
    return document
