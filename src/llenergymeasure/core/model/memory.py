"""How much GPU memory an experiment will need, told before anything is downloaded or loaded.

    weights  +  key-value cache of the largest batch  +  15 % for activations, kernels and fragmentation

The figures come from files: the model's `config.json` and the headers of its weight files, in a directory or in the
Hub's cache; of a model that is in neither, from the `config.json` on the Hub where the caller allows asking. No engine
is imported. What cannot be known is `None`, with the reason.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.model.kv_cache import kv_cache_bytes
from llenergymeasure.core.model.parameters import (
    bits_from_name,
    count_weights,
    first_int,
    model_width,
    text_part,
    total_from_name,
)
from llenergymeasure.core.model.source import (
    CONFIG_FILE,
    FetchConfig,
    HubConfigError,
    model_directory,
    read_config,
)
from llenergymeasure.domain.readable import counted
from llenergymeasure.exceptions import BackendError

MB: Final = 1_000_000
"""Bytes per MB."""

OVERHEAD: Final = 0.15
"""Share added to weights and cache for activations, workspaces, the CUDA context and fragmentation."""

BYTES_PER_WEIGHT: Final = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
"""Width of a weight, and of a cached key or value, by precision."""

SCALE_BITS: Final = 0.5
"""What the scales of quantised weights take, in bits per weight."""

_MAX_HEADER_BYTES: Final = 100 * MB
"""Limit of a safetensors header, from the format's documentation."""


@dataclass(frozen=True, slots=True)
class VramEstimate:
    """Memory needed on all GPUs together, in MB (10^6 bytes); `None`: not known.

    Args:
        weights_mb: The model's weights as they will be loaded.
        kv_cache_mb: Keys and values of the largest batch at its greatest length.
        notes: What the figures rest on, and why one is missing.
    """

    weights_mb: float | None
    kv_cache_mb: float | None
    notes: tuple[str, ...] = ()

    @property
    def total_mb(self) -> float | None:
        """Weights, cache and overhead; `None` where a part is not known."""
        if self.weights_mb is None or self.kv_cache_mb is None:
            return None
        return (self.weights_mb + self.kv_cache_mb) * (1.0 + OVERHEAD)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a model's files say about its size: the config, and the weight files where they are here.

    Args:
        stored_weights: Weights counted in the headers of the weight files.
        weight_bytes: Size of all weight files in bytes.
    """

    config: Mapping[str, Any]
    stored_weights: int | None = None
    weight_bytes: int | None = None


def memory_text(megabytes: float) -> str:
    """An amount of memory for a reader: `4.2 GB`, in MB below a tenth of a gigabyte."""
    return f"{megabytes / 1000:.1f} GB" if megabytes >= 100 else f"{megabytes:.1f} MB"


def estimate_vram(
    config: ExperimentConfig,
    *,
    environ: Mapping[str, str] = os.environ,
    cache_home: Path | None = None,
    fetch_config: FetchConfig | None = None,
) -> VramEstimate:
    """Estimate the memory that `config` needs.

    Args:
        cache_home: Home of the Hub's cache (`HF_HOME`), where the user config names one.
        fetch_config: Asks the Hub for the configuration of a model that is not here; `None`: it is not asked.
    """
    directory = model_directory(config.model, config.revision, environ, cache_home)
    files = read_model_files(directory) if directory is not None else None
    reason = f"{config.model} is not on this machine yet"
    if files is None and fetch_config is not None and not Path(config.model).expanduser().is_dir():
        try:
            files = ModelFiles(fetch_config(config.model, config.revision))
        except HubConfigError as error:
            reason += f", and {error}"
    if files is None:
        return _from_name(config, reason)
    weights_mb, how = _weights(config, files)
    section = config.backend_config
    rows = min(section.batch, config.n) * section.rows_per_prompt
    tokens = config.max_input_tokens + config.max_output_tokens
    if not section.keeps_cache:
        return VramEstimate(weights_mb, 0.0, (how, "no key-value cache"))
    cache = kv_cache_bytes(files.config, rows, tokens, BYTES_PER_WEIGHT[config.precision])
    if cache is None:
        return VramEstimate(
            weights_mb, None, (how, "key-value cache not known: the config lacks the attention's dimensions")
        )
    size = f"{counted(rows, 'sequence')} of {tokens} tokens"
    return VramEstimate(weights_mb, cache / MB, (how, f"key-value cache of {size}"))


def read_model_files(directory: Path) -> ModelFiles | None:
    """Read `config.json` and the headers of the weight files; `None` where there is no readable config."""
    try:
        config = read_config(directory / CONFIG_FILE)
    except BackendError:
        return None
    shards = [directory / name for name in sorted(_weight_files(directory))]
    if not all(shard.is_file() for shard in shards):
        return ModelFiles(config)
    return ModelFiles(config, _count_safetensors(shards), sum(shard.stat().st_size for shard in shards))


def _weights(config: ExperimentConfig, files: ModelFiles) -> tuple[float | None, str]:
    """Size of the weights as loaded, in MB, and what the figure rests on."""
    quantisation = files.config.get("quantization_config")
    if quantisation is not None and files.weight_bytes is not None:
        return files.weight_bytes / MB, "weights as stored (the checkpoint is quantised)"
    count, how = files.stored_weights, "weights counted in the files' headers"
    if count is None:
        counted = count_weights(files.config)
        if counted is None:
            return None, "weights not known: no weight file here, and the config lacks the model's dimensions"
        count, how = counted.stored, "weights worked out from the config's dimensions"
    bits = None
    if quantisation is not None and (bits := _checkpoint_bits(quantisation)) is None:
        return None, "weights not known: the config does not tell to how many bits the checkpoint is quantised"
    bits, width = config.backend_config.loading_bits or bits, BYTES_PER_WEIGHT[config.precision]
    if bits is not None:
        return _quantised_bytes(files.config, count, bits, width) / MB, f"{how}, matrices at {bits} bits"
    return count * width / MB, f"{how}, as {config.precision}"


def _checkpoint_bits(quantisation: Any) -> int | None:
    """Bits of a weight in a quantised checkpoint, by the `quantization_config` that transformers and vLLM read."""
    if not isinstance(quantisation, Mapping):
        return None
    if quantisation.get("load_in_4bit") or quantisation.get("load_in_8bit"):
        return 4 if quantisation.get("load_in_4bit") else 8
    groups = quantisation.get("config_groups")  # compressed-tensors
    if isinstance(groups, Mapping) and groups:
        widths = [_checkpoint_bits(group.get("weights")) for group in groups.values() if isinstance(group, Mapping)]
        return max((width for width in widths if width is not None), default=None)
    bits = first_int(quantisation, "bits", "w_bit", "num_bits", "nbits")
    named = (str(quantisation.get(name)) for name in ("quant_algo", "weights", "quant_type", "quant_method"))
    return bits or next((width for name in named if (width := bits_from_name(name)) is not None), None)


def _quantised_bytes(config: Mapping[str, Any], stored: int, bits: int, bytes_per_weight: float) -> float:
    """Size of quantised weights: embedding and output head stay as they are, and scales take half a bit a weight."""
    text = text_part(config)
    try:
        ends = min(stored, 2 * (first_int(text, "vocab_size") or 0) * model_width(text))
    except KeyError:
        ends = 0
    return ends * bytes_per_weight + (stored - ends) * (bits + SCALE_BITS) / 8


def _from_name(config: ExperimentConfig, reason: str) -> VramEstimate:
    total = total_from_name(config.model)
    if total is None:
        return VramEstimate(None, None, (f"not known: {reason}",))
    bits = config.backend_config.loading_bits or bits_from_name(config.model)
    if bits is None:
        weights_mb, width = total * BYTES_PER_WEIGHT[config.precision] / MB, str(config.precision)
    else:
        weights_mb, width = total * (bits + SCALE_BITS) / 8 / MB, f"{bits} bits"
    how = f"weights by the model's name ({total / 1e9:g} billion parameters), as {width}"
    return VramEstimate(weights_mb, None, (how, f"key-value cache not known: {reason}"))


def _weight_files(directory: Path) -> set[str]:
    """The files that are loaded: those that the index names, else the single one; what else lies there is not."""
    try:
        index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {"model.safetensors"}


def _count_safetensors(paths: Sequence[Path]) -> int | None:
    """Number of values in safetensors files, from their headers: 8 bytes of length, then JSON with every shape."""
    total = 0
    try:
        for path in paths:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _MAX_HEADER_BYTES:
                    return None
                header = json.loads(file.read(length))
            shapes = (entry["shape"] for name, entry in header.items() if name != "__metadata__")
            total += sum(math.prod(map(int, shape)) for shape in shapes)
        return total
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return None
