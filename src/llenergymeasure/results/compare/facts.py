"""The facts of a run beside its settings that decide whether its figures may stand beside another's."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

from llenergymeasure.domain.comparison import DifferenceKind
from llenergymeasure.domain.experiment import ExperimentResult

Facts = Mapping[str, str]
"""What is recorded of a run, by the names of `FACTS`; what is not recorded is not in it."""

PACKAGES: Final = "packages"
"""The fact that holds one package a line."""

_SHOWN_OF_A_HASH: Final = 12


@dataclass(frozen=True, slots=True)
class Fact:
    """One of them.

    Args:
        must_be_known: Whether it is said where a side does not tell it.
    """

    kind: DifferenceKind
    read: Callable[[ExperimentResult], str | None]
    must_be_known: bool = False


def _text(path: str) -> Callable[[ExperimentResult], str | None]:
    """The text of a dotted attribute path; `None` as soon as a part is null."""

    def read(result: ExperimentResult) -> str | None:
        found: Any = result
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return None if found is None else str(found)

    return read


def _listed(name: str) -> Callable[[ExperimentResult], str | None]:
    """A fact of each GPU: `2 × 700`."""

    def read(result: ExperimentResult) -> str | None:
        snapshot = result.environment_snapshot
        values: Sequence[object] = () if snapshot is None else attrgetter(name)(snapshot)
        return _counted(str(value) for value in values if value is not None)

    return read


def _devices(result: ExperimentResult) -> str | None:
    boundary, snapshot = result.measurement_boundary, result.environment_snapshot
    names = boundary.device_names if boundary is not None else []
    if snapshot is not None and names in ([], ["CPU"]):
        names = snapshot.gpu_names or ([snapshot.cpu.model] if snapshot.cpu and snapshot.cpu.model else names)
    return _counted(names)


def _counted(values: Iterable[str]) -> str | None:
    counts = Counter(values)
    return ", ".join(f"{count} × {value}" if count > 1 else value for value, count in sorted(counts.items())) or None


def _dataset(result: ExperimentResult) -> str | None:
    dataset = result.dataset
    return None if dataset is None or dataset.sha256 is None else f"{dataset.sha256[:_SHOWN_OF_A_HASH]}…"


def _packages(result: ExperimentResult) -> str | None:
    snapshot = result.environment_snapshot
    return None if snapshot is None else sys.intern("\n".join(snapshot.pip_freeze)) or None  # one text for all runs


FACTS: Final[Mapping[str, Fact]] = {
    "devices": Fact("hardware", _devices, must_be_known=True),
    "power limit (W)": Fact("limits", _listed("gpu_power_limit_w")),
    "highest SM clock (MHz)": Fact("limits", _listed("gpu_max_sm_clock_mhz")),
    "SHA-256 of the prompts": Fact("dataset", _dataset, must_be_known=True),
    "prompts": Fact("dataset", _text("dataset.prompt_count")),
    "meter": Fact("meter", _text("energy_breakdown.meter"), must_be_known=True),
    "how the energy was found": Fact("meter", _text("energy_breakdown.method"), must_be_known=True),
    "what the energy includes": Fact("meter", _text("energy_breakdown.scope")),
    "part of the run that counts": Fact("window", _text("measurement_methodology")),
    "engine": Fact("software", _text("backend")),
    "version of the engine": Fact("software", _text("backend_version")),
    "commit of the weights": Fact("software", _text("model_revision")),
    "llenergymeasure": Fact("software", _text("environment_snapshot.tool_version")),
    "Python": Fact("software", _text("environment_snapshot.python_version")),
    "driver": Fact("software", _text("environment_snapshot.cuda_driver_version")),
    "CUDA": Fact("software", _text("environment_snapshot.cuda_version")),
    "operating system": Fact("software", _text("environment_snapshot.platform")),
    "processor": Fact("software", _text("environment_snapshot.cpu.model")),
    "frequency governor": Fact("software", _text("environment_snapshot.cpu.governor")),
    "persistence mode": Fact("software", _listed("gpu_persistence_mode")),
    "runner": Fact("software", _text("runner")),
    "image": Fact("software", _text("image_digest")),
    PACKAGES: Fact("software", _packages),
}
"""What is looked at, by what it is called."""
