"""One side of a comparison: every result below a directory, by configuration, each reduced to what comparing needs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Final

from llenergymeasure.domain.base import as_utc
from llenergymeasure.domain.comparison import ComparedSide, FigureName
from llenergymeasure.domain.energy import BudgetKind, absolute_half_width
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.warnings import codes_of
from llenergymeasure.exceptions import ComparisonError
from llenergymeasure.results.compare.facts import FACTS, Facts
from llenergymeasure.results.export import batch_size, settings_in_effect
from llenergymeasure.results.found import each_once, identity_of, results_in
from llenergymeasure.results.persistence import RESULT_FILE

SHOWN_BY_REPEATS: Final[frozenset[BudgetKind]] = frozenset({"counter_resolution", "sampling", "cycles"})
"""Errors that differ from run to run, so that they are in the spread of the cycles; others may repeat."""


@dataclass(frozen=True, slots=True)
class Stated:
    """95 % half-widths of a run's energy, in per cent of it.

    Args:
        comparative: Without the sensor's gain.
        repeated: Of it what another run would have as well.
    """

    comparative: float
    repeated: float
    gain: float


@dataclass(frozen=True, slots=True)
class Run:
    """What comparing needs of one result.

    Args:
        boards: Identities of the metered devices; `None`: not recorded.
        stated: `None`: the energy has no stated uncertainty.
        tokens: Input and output tokens per request; `None`: not recorded.
    """

    identity: tuple[str, datetime]
    start: datetime
    end: datetime
    figures: Mapping[FigureName, float | None]
    facts: Facts
    boards: frozenset[str] | None
    stated: Stated | None
    tokens: Mapping[str, float | None]
    estimated: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Configuration:
    """The runs of one configuration; there is at least one.

    Args:
        settings: The settings in effect, as JSON, by dotted path.
        batch: How many requests run side by side; `None`: not recorded.
    """

    config_hash: str
    name: str
    settings: Mapping[str, str]
    batch: int | None
    runs: list[Run] = field(default_factory=list)

    def values(self, figure: FigureName) -> list[float]:
        """The figure of each run that has one."""
        return [value for run in self.runs if (value := run.figures[figure]) is not None]


@dataclass(frozen=True)
class Side:
    """The configurations of one side by hash, in order of first appearance."""

    label: str
    configurations: Mapping[str, Configuration]

    @cached_property
    def runs(self) -> list[Run]:
        """All of its runs, the oldest first."""
        runs = (run for configuration in self.configurations.values() for run in configuration.runs)
        return sorted(runs, key=lambda run: run.start)

    @property
    def settings(self) -> set[str]:
        """The dotted paths of all settings of its configurations."""
        return {path for configuration in self.configurations.values() for path in configuration.settings}

    def described(self) -> ComparedSide:
        """The side as a comparison records it."""
        return ComparedSide(
            path=self.label,
            runs=len(self.runs),
            configurations=len(self.configurations),
            first_start=self.runs[0].start,
            last_end=max(run.end for run in self.runs),
        )


def read_side(path: Path) -> Side:
    """Every result below a directory, or the one in a file; one result at a time is in memory.

    A copy of a result counts once: it is no second measurement.

    Raises:
        ComparisonError: There is none.
        PersistenceError: One cannot be read; names it.
    """
    found: dict[str, Configuration] = {}
    for _, result in each_once(results_in(path)):
        found.setdefault(result.measurement_config_hash, _configuration(result)).runs.append(_run(result))
    if not found:
        raise ComparisonError(f"{path} holds no {RESULT_FILE}. Give a run's or a study's directory, or one above them.")
    return Side(os.fsencode(path).decode("utf-8", "replace"), found)


def split_side(side: Side, setting: str) -> list[Side]:
    """The parts of a side that have one value of a setting each, in order of first appearance.

    Raises:
        ComparisonError: There are fewer than two.
    """
    parts: dict[str | None, dict[str, Configuration]] = {}
    for config_hash, configuration in side.configurations.items():
        parts.setdefault(configuration.settings.get(setting), {})[config_hash] = configuration
    if len(parts) < 2:
        known = side.settings
        hint = "all have the same value" if setting in known else f"the settings are {', '.join(sorted(known))}"
        raise ComparisonError(f"--by {setting}: {side.label} cannot be split by this setting: {hint}.")
    return [
        Side(f"{side.label} [{setting}: {'not set' if value is None else json.loads(value)}]", part)
        for value, part in parts.items()
    ]


def refuse_common_runs(sides: Sequence[Side]) -> None:
    """Make sure that no run is on two sides.

    Raises:
        ComparisonError: One is; a run compared with itself says nothing.
    """
    for number, side in enumerate(sides):
        for other in sides[number + 1 :]:
            if {run.identity for run in side.runs} & {run.identity for run in other.runs}:
                raise ComparisonError(
                    f"{side.label} and {other.label} hold the same run. Compare directories that have none in common."
                )


def _configuration(result: ExperimentResult) -> Configuration:
    settings = {key: json.dumps(value, sort_keys=True) for key, value in settings_in_effect(result).items()}
    name = result.config_name or result.model_name or result.measurement_config_hash
    return Configuration(result.measurement_config_hash, name, settings, batch_size(result))


def _run(result: ExperimentResult) -> Run:
    return Run(
        identity=identity_of(result),
        start=as_utc(result.start_time),
        end=as_utc(result.end_time),
        figures={
            "energy_per_token_j": _positive(result.avg_energy_per_token_j),
            "tokens_per_second": _positive(result.avg_tokens_per_second),
        },
        facts={name: value for name, fact in FACTS.items() if (value := fact.read(result)) is not None},
        boards=_boards(result),
        stated=_stated(result),
        tokens={
            "input tokens per request": _per_request(result.input_tokens, result.num_requests),
            "output tokens per request": _per_request(result.output_tokens, result.num_requests),
        },
        estimated=result.is_estimate,
        warnings=tuple(codes_of(result.measurement_warnings)),
    )


def _positive(figure: float | None) -> float | None:
    return figure if figure is not None and figure > 0 else None


def _per_request(tokens: int | None, requests: int | None) -> float | None:
    return tokens / requests if tokens is not None and requests else None


def _boards(result: ExperimentResult) -> frozenset[str] | None:
    boundary, snapshot = result.measurement_boundary, result.environment_snapshot
    devices = boundary.devices if boundary is not None else snapshot.gpu_uuids if snapshot is not None else []
    return frozenset(devices) or None


def _stated(result: ExperimentResult) -> Stated | None:
    uncertainty, energy_j = result.uncertainty, result.total_energy_j
    if uncertainty is None or not energy_j:
        return None
    lines = [line for line in uncertainty.budget if line.kind != "baseline"]
    repeated = [line for line in lines if line.kind != "gain" and line.kind not in SHOWN_BY_REPEATS]
    as_pct = 100 / energy_j
    return Stated(
        comparative=uncertainty.comparative_j * as_pct,
        repeated=absolute_half_width(repeated) * as_pct,
        gain=absolute_half_width(line for line in lines if line.kind == "gain") * as_pct,
    )
