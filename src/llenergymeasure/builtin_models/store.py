"""Where built-in models are kept: the package's own files, and the directories made of them.

Weights are random, the same bytes on every machine, and tame enough to test engines with. Each tensor comes from its
own SHAKE-256 stream, named after it, so that neither torch's version nor the processor's vector units play a part. A
weight is a sum of four 6-bit numbers (nearly normal) times a power of two, hence exact in bf16, fp16 and fp32 alike: a
model loaded in another precision has the same weights. The scales keep every layer's output near unit size and let
attention choose: the next token hangs on the whole context and greedy text does not run in circles.

Models of real sizes have none on disk: the engine makes them (`core.backends.pytorch.in_place`).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import platformdirs

from llenergymeasure.constants import APP_NAME, BUILTIN_MODEL_PREFIX
from llenergymeasure.exceptions import BackendError, ConfigError

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_FOLDERS: Final = {
    name: Path(__file__).parent / name.replace("-", "_") for name in ("tiny-llama", "llama-1b", "llama-8b")
}
_WEIGHTS: Final = "model.safetensors"
_DIGEST: Final = f"{_WEIGHTS}.sha256"
"""The weights' SHA-256 as they were made, in the form that `sha256sum --check` reads."""

WEIGHTS_SEED: Final = "weights_seed"
"""Field of a `config.json` whose weights are made where they are used, from this number, and stored nowhere."""

_RECIPE_VERSION: Final = 1
"""Goes up whenever the weights change; part of the name of a model's directory."""

# Binary exponents of the step between neighbouring weights; the standard deviation is 37 steps. With 256 inputs, -9
# keeps unit size, one more doubles it.
_EMBEDDING_EXPONENT: Final = -5
_LAYER_EXPONENT: Final = -9
_QUERY_EXPONENT: Final = -8
_HEAD_EXPONENT: Final = -7

_DRAWS: Final = 4
_DRAW_MASK: Final = 0b111111
_MEAN: Final = _DRAWS * _DRAW_MASK // 2


def builtin_models() -> tuple[str, ...]:
    """All names, as a configuration gives them."""
    return tuple(f"{BUILTIN_MODEL_PREFIX}{name}" for name in _FOLDERS)


def packaged_files(model: str) -> Path:
    """Directory of the package with the model's `config.json`, but no weights: costs nothing to look at.

    Raises:
        ConfigError: There is no built-in model of that name.
    """
    name = model.removeprefix(BUILTIN_MODEL_PREFIX)
    if name not in _FOLDERS:
        near = difflib.get_close_matches(name, _FOLDERS, n=1)
        hint = f" Did you mean '{BUILTIN_MODEL_PREFIX}{near[0]}'?" if near else ""
        raise ConfigError(f"model: no built-in model '{model}'.{hint} There are: {', '.join(builtin_models())}")
    return _FOLDERS[name]


def materialise(model: str, cache_dir: Path | None = None) -> Path:
    """Directory of a built-in model, ready for the engine's loader; made when it is not there yet.

    The directory's name carries a hash of its content, so that releases do not get in each other's way. Processes may
    race for it: each builds aside and renames, the first one wins.

    Args:
        cache_dir: Where models are kept; `None`: `models` in the platform's cache directory (on Linux
            `$XDG_CACHE_HOME/llenergymeasure`). Where it cannot be written, a directory of this user's among the
            temporary files takes its place, with a warning in the log.

    Raises:
        ConfigError: There is no built-in model of that name.
        BackendError: Nowhere to write, or torch and safetensors are not installed.
    """
    source = packaged_files(model)
    name = f"{model.removeprefix(BUILTIN_MODEL_PREFIX)}-{_content_hash(source)[:12]}"
    preferred = cache_dir or Path(platformdirs.user_cache_dir(APP_NAME)) / "models"
    try:
        return _ensure(source, preferred / name)
    except OSError as error:
        fallback = _temporary_dir()
        logger.warning(
            "cannot write %s (%s): the built-in model goes to %s instead. Set XDG_CACHE_HOME to a directory that can "
            "be written to keep it.",
            preferred,
            error.strerror or error,
            fallback,
        )
    try:
        return _ensure(source, fallback / name)
    except OSError as error:
        raise BackendError(
            f"the built-in model can be written neither to {preferred} nor to {fallback}: "
            f"{error.strerror or error}. Set XDG_CACHE_HOME or TMPDIR to a directory with 20 MB of free space."
        ) from error


def _ensure(source: Path, target: Path) -> Path:
    if _is_whole(source, target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        made = aside / "made"
        made.mkdir()
        for file in _files(source):
            shutil.copyfile(file, made / file.name)
        if not _made_in_place(source):
            _write_weights(made)
        _move_into_place(source, made, target, damaged=aside / "damaged")
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def _write_weights(directory: Path) -> None:
    try:
        from safetensors.torch import save

        weights = _build_weights(json.loads((directory / "config.json").read_text(encoding="utf-8")))
    except ImportError as error:
        raise BackendError(
            f"the built-in models need torch and safetensors ({error.name} is missing). "
            'Install them with: pip install "llenergymeasure[pytorch]"'
        ) from error
    logger.info("making the weights of a built-in model in %s", directory)
    content = save(weights, metadata={"format": "pt"})
    (directory / _WEIGHTS).write_bytes(content)
    (directory / _DIGEST).write_text(_digest_line(content), encoding="ascii")


def _move_into_place(source: Path, made: Path, target: Path, *, damaged: Path) -> None:
    """Rename `made` to `target`; another process may do the same at any moment."""
    if target.exists() and not _is_whole(source, target):
        logger.warning("the built-in model in %s was damaged and is made again", target)
        with suppress(FileNotFoundError):  # another process moves the damaged one away at this moment
            os.rename(target, damaged)
    try:
        os.rename(made, target)
    except OSError:
        if not _is_whole(source, target):  # otherwise another process was first, with the same content
            raise


def _is_whole(source: Path, target: Path) -> bool:
    """Whether every file has the content it was made with: a damaged model would run, and be another model."""
    try:
        copied = all((target / file.name).read_bytes() == file.read_bytes() for file in _files(source))
        if not copied or _made_in_place(source):
            return copied
        return (target / _DIGEST).read_bytes() == _digest_line((target / _WEIGHTS).read_bytes()).encode()
    except OSError:
        return False


def _digest_line(weights: bytes) -> str:
    return f"{hashlib.sha256(weights).hexdigest()}  {_WEIGHTS}\n"


def _made_in_place(source: Path) -> bool:
    return WEIGHTS_SEED in json.loads((source / "config.json").read_text(encoding="utf-8"))


def _files(source: Path) -> list[Path]:
    """The model's own files, and what it lacks of the small model's: the tokenizer."""
    folders = (_FOLDERS["tiny-llama"], source)
    files = {file.name: file for folder in folders for file in folder.iterdir() if file.is_file()}
    return [files[name] for name in sorted(files)]


def _content_hash(source: Path) -> str:
    digest = hashlib.sha256(f"recipe {_RECIPE_VERSION}\n".encode())
    for file in _files(source):
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def _temporary_dir() -> Path:
    """A directory among the temporary files that belongs to this user alone."""
    user = os.getuid()
    directory = Path(tempfile.gettempdir()) / f"{APP_NAME}-{user}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        owner = directory.lstat().st_uid
    except OSError as error:
        raise BackendError(
            f"no directory for the built-in model: {directory} cannot be made ({error.strerror or error}). "
            "Set XDG_CACHE_HOME or TMPDIR to a directory that can be written."
        ) from error
    if directory.is_symlink() or owner != user:
        raise BackendError(f"{directory} belongs to somebody else. Set XDG_CACHE_HOME to a directory of your own.")
    return directory


def _build_weights(config: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Make all tensors of a Llama with this `config.json`, in bf16, under the names that transformers gives them."""
    import torch

    weights = {}
    for name, shape, exponent in _tensors(config):
        if exponent is None:
            weights[name] = torch.ones(shape, dtype=torch.bfloat16)
        else:
            weights[name] = (_draw(name, shape) * 2.0**exponent).to(torch.bfloat16)
    # Padding and BOS have meaning as inputs only: with zero rows they are never the likeliest output.
    for token_id in (config["pad_token_id"], config["bos_token_id"]):
        weights["lm_head.weight"][token_id] = 0.0
    return weights


def _tensors(config: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
    """Name, shape and exponent of each tensor; without an exponent it is all ones (a norm)."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", (vocabulary, hidden), _EMBEDDING_EXPONENT
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", (hidden,), None
        yield f"{layer}.self_attn.q_proj.weight", (queries, hidden), _QUERY_EXPONENT
        yield f"{layer}.self_attn.k_proj.weight", (keys, hidden), _LAYER_EXPONENT
        yield f"{layer}.self_attn.v_proj.weight", (keys, hidden), _LAYER_EXPONENT
        yield f"{layer}.self_attn.o_proj.weight", (hidden, queries), _LAYER_EXPONENT
        yield f"{layer}.post_attention_layernorm.weight", (hidden,), None
        yield f"{layer}.mlp.gate_proj.weight", (inner, hidden), _LAYER_EXPONENT
        yield f"{layer}.mlp.up_proj.weight", (inner, hidden), _LAYER_EXPONENT
        yield f"{layer}.mlp.down_proj.weight", (hidden, inner), _LAYER_EXPONENT
    yield "model.norm.weight", (hidden,), None
    yield "lm_head.weight", (vocabulary, hidden), _HEAD_EXPONENT


def _draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Whole numbers around 0, nearly normal with a standard deviation of 37, none beyond ±126, as float32."""
    import torch

    stream = hashlib.shake_256(name.encode()).digest(prod(shape) * _DRAWS)
    draws = torch.frombuffer(bytearray(stream), dtype=torch.uint8).view(*shape, _DRAWS) & _DRAW_MASK
    return draws.sum(-1, dtype=torch.int32).sub(_MEAN).to(torch.float32)
