"""Measure what an LLM inference configuration costs: joules per output token, tokens per second, FLOPs.

    import llenergymeasure as llem

    result = llem.run_experiment(model="gpt2", n=50)
    print(result.summary())

The names in `__all__` follow semantic versioning; everything else is internal. They are loaded on first use, so that
importing the package costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llenergymeasure.constants import VERSION as __version__

if TYPE_CHECKING:
    from llenergymeasure._api import run_experiment, run_study
    from llenergymeasure.config.models import ExperimentConfig, StudyConfig
    from llenergymeasure.domain.experiment import ExperimentResult
    from llenergymeasure.domain.study import StudyResult

__all__ = [
    "ExperimentConfig",
    "ExperimentResult",
    "StudyConfig",
    "StudyResult",
    "__version__",
    "run_experiment",
    "run_study",
]

_HOMES = {
    "run_experiment": "llenergymeasure._api",
    "run_study": "llenergymeasure._api",
    "ExperimentConfig": "llenergymeasure.config.models",
    "StudyConfig": "llenergymeasure.config.models",
    "ExperimentResult": "llenergymeasure.domain.experiment",
    "StudyResult": "llenergymeasure.domain.study",
}


_DEPRECATED: dict[str, tuple[str, str]] = {}
"""Exports that left `__all__` in the last minor release: where each still is, and what to use instead. A name stays
here for one minor release and is gone in the next."""


def __getattr__(name: str) -> object:
    if name in _DEPRECATED:
        home, advice = _DEPRECATED[name]
        from warnings import warn

        warn(f"llenergymeasure.{name} will be removed in the next minor release; {advice}", DeprecationWarning, 2)
    elif name in _HOMES:
        home = _HOMES[name]
    else:
        raise AttributeError(f"module 'llenergymeasure' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(home), name)
    if name not in _DEPRECATED:  # a deprecated name warns every time it is asked for
        globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
