"""What can be known to fail before a weight is read, found all at once, whatever the engine.

A check is a function that yields problems, each one sentence with its fix. An engine adds checks of its own settings.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from typing import Any, Final, TypeVar

from llenergymeasure.config.base import BackendConfig
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.backends.protocol import GenerationRequest
from llenergymeasure.core.model.context import context_length
from llenergymeasure.core.model.source import ModelSource, first_line
from llenergymeasure.exceptions import BackendError, ConfigError

T = TypeVar("T")


def import_failure(package: str) -> str | None:
    """Why a package that is installed cannot be imported; `None`: it can, or is not there at all."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as error:
        return None if error.name == package else first_line(error)
    except Exception as error:  # noqa: BLE001 (a broken package raises what it likes)
        return first_line(error)
    return None


@dataclass(frozen=True, slots=True)
class EngineHost:
    """What an engine finds on this machine for one experiment.

    Args:
        source: The model's files; `None` when they cannot be had.
        on_gpu: Whether the model goes to GPUs; `None` when there is no place for it.
        import_failure: Why an installed package cannot be imported; `None`: it can.
    """

    source: ModelSource | None
    on_gpu: bool | None
    is_installed: Callable[[str], bool] = lambda package: util.find_spec(package) is not None
    import_failure: Callable[[str], str | None] = import_failure


Check = Callable[[ExperimentConfig, EngineHost], Iterator[str]]


def check_request(request: GenerationRequest, context_length: int | None, vocab_size: int) -> None:
    """Refuse what a loaded model cannot answer.

    Args:
        context_length: Longest sequence it takes, in tokens; `None`: unbounded.
        vocab_size: Rows of its input embedding.

    Raises:
        BackendError: The prompt is empty, too long, or of another model's tokens.
    """
    length = len(request.token_ids)
    if length == 0:
        raise BackendError(f"prompt {request.index} has no tokens. Remove empty prompts from the data set.")
    highest = max(request.token_ids)
    if highest >= vocab_size:
        raise BackendError(
            f"prompt {request.index} holds token id {highest}, but the model's vocabulary ends at "
            f"{vocab_size - 1}: the tokenizer belongs to another model."
        )
    if context_length is not None and length + request.max_new_tokens > context_length:
        raise BackendError(
            f"prompt {request.index} has {length} tokens and may grow by {request.max_new_tokens}, but the model takes "
            f"{context_length} in all. Lower max_input_tokens or max_output_tokens."
        )


_CHOICES: Final = (bool, str, dict)
"""Types of settings that choose something; of a number an engine may make a near one, which the result tells."""


def check_arrived(engine: str, section: BackendConfig, settings: Mapping[str, Any]) -> None:
    """Refuse an engine that chose otherwise than it was told.

    Args:
        settings: Read back from the engine, by config path.

    Raises:
        BackendError: One of its settings is not that of `section`.
    """
    for name, asked in section.model_dump(exclude_none=True).items():
        found = settings[f"{section.section}.{name}"]
        chosen = {key: found[key] for key in asked if key in found} if isinstance(asked, dict) and found else found
        if isinstance(asked, _CHOICES) and chosen != asked:
            raise BackendError(
                f"{section.section}.{name}: {engine} took {chosen!r} for {asked!r} on this machine. "
                "Use that, or remove it."
            )


def attempt(find: Callable[[], T], problems: list[str]) -> T | None:
    """What `find` gives; where it raises, `None`, and the reason goes to `problems`."""
    try:
        return find()
    except (BackendError, ConfigError) as error:
        problems.append(str(error))
        return None


def combination_problems(config: ExperimentConfig, host: EngineHost, engine_checks: Sequence[Check]) -> list[str]:
    """Settings of `config` that cannot work with what is there: for any engine, then for this one."""
    return [problem for check in (*CHECKS, *engine_checks) for problem in check(config, host)]


def needs_package(host: EngineHost, setting: str, packages: Sequence[str], how: str) -> Iterator[str]:
    """One of `packages` must be there, and work; `how` tells what to do where none is."""
    present = [package for package in packages if host.is_installed(package)]
    failures = [(package, failure) for package in present if (failure := host.import_failure(package)) is not None]
    if not present:
        yield f"{setting}: needs {' or '.join(packages)}, which is not installed. {how}"
    elif len(failures) == len(present):
        package, failure = failures[0]
        yield f"{setting}: {package} is installed, and breaks when it is imported ({failure}). Reinstall it. {how}"


def quantised_already(config: ExperimentConfig, host: EngineHost, setting: str) -> Iterator[str]:
    """A quantised checkpoint cannot be quantised again by `setting`, a field of the engine's section."""
    if host.source is not None and "quantization_config" in host.source.config:
        yield f"{config.backend}.{setting}: {config.model} is quantised already. Remove {setting}."


def _context_is_long_enough(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    context = context_length(host.source.config) if host.source is not None else None
    wanted = config.max_input_tokens + config.max_output_tokens
    if context is not None and wanted > context:
        yield (
            f"max_input_tokens ({config.max_input_tokens}) + max_output_tokens ({config.max_output_tokens}) "
            f"= {wanted}, but {config.model} takes {context} tokens in all. "
            f"Lower them, e.g. max_input_tokens: {max(context - config.max_output_tokens, 1)}."
        )


def _revision_has_an_effect(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if config.revision is not None and host.source is not None and host.source.revision is None:
        yield (
            f"revision: {config.revision!r} names a commit on the Hub, and {config.model} is not loaded from there. "
            "Remove revision, or name the model by its id on the Hub."
        )


def _has_a_decoder(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    if host.source is not None and host.source.config.get("is_encoder_decoder"):
        yield f"model: {config.model} is an encoder-decoder model. Only decoder-only language models are supported."


def _sees_only_the_past(config: ExperimentConfig, host: EngineHost) -> Iterator[str]:
    """An encoder reads the whole text at once: it can be made to produce tokens, which are no continuation."""
    if host.source is None:
        return
    content, family = host.source.config, str(host.source.config.get("model_type"))
    architectures = [str(name) for name in content.get("architectures") or ()]
    fills_gaps = any(name.endswith(_HEADS_OF_ENCODERS) for name in architectures)
    is_encoder = family in ENCODERS
    if (fills_gaps or is_encoder) and not (content.get("is_decoder") or content.get("causal")):
        yield (
            f"model: {config.model} ({architectures[0] if architectures else family}) is an encoder-only model, which "
            "does not generate text. Use a decoder-only language model."
        )


ENCODERS: Final = frozenset(
    {
        *(
            "albert",
            "bert",
            "bert-generation",
            "big_bird",
            "camembert",
            "convbert",
            "data2vec",
            "deberta",
            "deberta-v2",
        ),
        *("distilbert", "electra", "ernie", "esm", "eurobert", "flaubert", "funnel", "ibert", "longformer", "luke"),
        *("megatron-bert", "mobilebert", "modernbert", "mpnet", "nomic_bert", "nystromformer", "reformer", "rembert"),
        *("roberta", "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "xlm", "xlm-roberta"),
        *("xlm-roberta-xl", "xmod", "yoso"),
    }
)
"""Families of transformers that see the whole text unless their config says `is_decoder` (or `causal`)."""

_HEADS_OF_ENCODERS: Final = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForPreTraining")

CHECKS: Final[tuple[Check, ...]] = (
    _context_is_long_enough,
    _revision_has_an_effect,
    _has_a_decoder,
    _sees_only_the_past,
)
