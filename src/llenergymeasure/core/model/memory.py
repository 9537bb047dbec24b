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
from llenergymeasure.core.model.parameters import (
    attention_heads,
    count_weights,
    first_int,
    layer_count,
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
from llenergymeasure.exceptions import BackendError

MB: Final = 1_000_000
"""Bytes per MB."""

OVERHEAD: Final = 0.15
"""Share added to weights and cache for activations, workspaces, the CUDA context and fragmentation."""

BYTES_PER_WEIGHT: Final = {"fp32": 4.0, "fp16": 2.0, "bf16": 2.0}
"""Width of a weight, and of a cached key or value, by precision."""

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
    cache = kv_cache_bytes(files.config, rows, tokens, BYTES_PER_WEIGHT[config.precision])
    if cache is None:
        return VramEstimate(
            weights_mb, None, (how, "key-value cache not known: the config lacks the attention's dimensions")
        )
    size = f"{rows} {'sequence' if rows == 1 else 'sequences'} of {tokens} tokens"
    return VramEstimate(weights_mb, cache / MB, (how, f"key-value cache of {size}"))


def kv_cache_bytes(config: Mapping[str, Any], rows: int, tokens: int, bytes_per_value: float) -> float | None:
    """Size in bytes of a key-value cache of `rows` sequences; `None` where the config lacks the dimensions.

    2 (keys and values) × layers × key-value heads × head width × tokens × rows × bytes per value. Layers with a sliding
    window hold no more than the window; layers without attention (state-space, linear) hold none that grows.
    """
    text = text_part(config)
    try:
        return _values_per_token(text) * _cached_positions(text, tokens) * rows * bytes_per_value
    except KeyError:
        return None


def read_model_files(directory: Path) -> ModelFiles | None:
    """Read `config.json` and the headers of the weight files; `None` where there is no readable config."""
    try:
        config = read_config(directory / CONFIG_FILE)
    except BackendError:
        return None
    shards = sorted(directory.glob("*.safetensors"))
    expected = _expected_shards(directory)
    if not shards or (expected is not None and not expected <= {shard.name for shard in shards}):
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
    bits = first_int(quantisation, "bits", "w_bit")
    return bits or {"fp8": 8, "fbgemm_fp8": 8, "mxfp4": 4}.get(str(quantisation.get("quant_method")))


def _quantised_bytes(config: Mapping[str, Any], stored: int, bits: int, bytes_per_weight: float) -> float:
    """Size of quantised weights: embedding and output head stay as they are, and scales take half a bit a weight."""
    text = text_part(config)
    try:
        ends = min(stored, 2 * (first_int(text, "vocab_size") or 0) * model_width(text))
    except KeyError:
        ends = 0
    return ends * bytes_per_weight + (stored - ends) * (bits + 0.5) / 8


def _from_name(config: ExperimentConfig, reason: str) -> VramEstimate:
    total = total_from_name(config.model)
    if total is None:
        return VramEstimate(None, None, (f"not known: {reason}",))
    weights_mb = total * BYTES_PER_WEIGHT[config.precision] / MB
    how = f"weights by the model's name ({total / 1e9:g} billion parameters), as {config.precision}"
    return VramEstimate(weights_mb, None, (how, f"key-value cache not known: {reason}"))


def _values_per_token(text: Mapping[str, Any]) -> int:
    """Numbers that one layer caches for one token; `KeyError` where the config lacks the dimensions."""
    heads, kv_heads, head_dim = attention_heads(text)
    if first_int(text, "kv_lora_rank") is not None:  # latent attention, cached after expansion by transformers
        key = (first_int(text, "qk_nope_head_dim") or 0) + (first_int(text, "qk_rope_head_dim") or 0)
        return heads * (key + (first_int(text, "v_head_dim") or key))
    return 2 * kv_heads * head_dim


def _cached_positions(text: Mapping[str, Any], tokens: int) -> int:
    """Positions that all layers together hold of one sequence of `tokens`; `KeyError` as above."""
    layers, kinds, window = layer_count(text), text.get("layer_types"), text.get("sliding_window")
    windowed = min(tokens, int(window)) if window else tokens
    if not isinstance(kinds, list) or len(kinds) != layers:
        return layers * (windowed if text.get("use_sliding_window", True) else tokens)
    growing = [kind for kind in kinds if kind not in ("linear_attention", "mamba", "recurrent", "conv")]
    return sum(windowed if kind == "sliding_attention" else tokens for kind in growing)


def _expected_shards(directory: Path) -> set[str] | None:
    """Weight files that the index names; `None` where there is no index, and so a single file."""
    try:
        index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return set(index["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


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
