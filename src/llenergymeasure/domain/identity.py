"""What a configuration measures, as sixteen hex digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def compute_measurement_config_hash(config: BaseModel) -> str:
    """Identity of what a configuration measures: the same on every machine, process and Python version.

    Unset fields do not count, so that a release which adds an optional field keeps the hashes of old configurations;
    `output_dir` says where results go, not what is measured.

    Returns:
        The first 16 hex digits of SHA-256 over the configuration's JSON with sorted keys.
    """
    return hash_of_settings(config.model_dump(mode="json", exclude_none=True, exclude={"output_dir"}))


def hash_of_settings(fields: Mapping[str, Any]) -> str:
    """The same of a configuration's JSON, of which unset fields and `output_dir` are left out already."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]
