"""A study's description becomes its experiments: fixed part, sweep and explicit entries, spanned and validated.

fixed part (base: under it) ─┬─ × sweep, per backend ──┐
                             └─ + each experiments: ───┴─ + flags → validate → unique configs, skipped points
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from llenergymeasure.config.base import by_dotted_path, deep_merge
from llenergymeasure.config.errors import describe_validation_error
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.config.same_work import same_work_key
from llenergymeasure.config.ssot import SECRET_NAMES
from llenergymeasure.config.study_plan import Setting, StudyPlan, plan_study
from llenergymeasure.config.yaml_io import LoadedDocument, SourceMap
from llenergymeasure.exceptions import ConfigError

logger = logging.getLogger(__name__)

MAX_POINTS: Final = 100_000
"""Months of measuring; each has to be kept in memory."""
MAX_RUNS: Final = 1_000_000
"""Of a study, cycles included; years of measuring."""
_MAX_REASONS: Final = 5


class CycleOrder(str, Enum):
    """How a study's experiments follow each other when each runs several times."""

    SEQUENTIAL = "sequential"
    INTERLEAVED = "interleaved"
    SHUFFLED = "shuffled"


@dataclass(frozen=True, slots=True)
class SkippedConfig:
    """A point of a study, as it was spanned, that is not a valid experiment; all of it ready for JSON.

    Each error has its location, type and message; `point` is what sets it apart: the swept fields, or its own entry.
    """

    raw_config: dict[str, Any]
    reason: str
    errors: list[dict[str, Any]] = field(default_factory=list)
    point: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """One experiment as it was spanned, not validated yet, and the fields that set it apart."""

    raw: dict[str, Any]
    shown: Mapping[str, Any]


class StudyTooLargeError(ConfigError):
    """A study spans more points than can be held; they can still be gone through, see `validated_points`."""

    def __init__(self, plan: StudyPlan) -> None:
        self.plan = plan
        super().__init__(
            f"{plan.name}: the sweep spans {plan.n_points:,} points; {MAX_POINTS:,} is the most. Shorten it."
        )

    def __reduce__(self) -> tuple[type[StudyTooLargeError], tuple[StudyPlan]]:
        return (type(self), (self.plan,))


def resolve_study(document: LoadedDocument, overrides: Mapping[str, Any]) -> StudyConfig:
    """The study a document describes (an experiment file is a study of one), with flags laid over it.

    Args:
        overrides: Values by dotted name; `execution.*` and `name` go to the study, the rest to every experiment.

    Raises:
        StudyTooLargeError: It spans more than `MAX_POINTS` points.
        ConfigError: A key is unknown or contradicts another, or no point is valid.
        pydantic.ValidationError: A value under `execution:` is wrong.
    """
    plan = plan_study(document.data, document, overrides)
    experiments, skipped = _resolve(plan)
    return StudyConfig.model_validate(
        {
            **plan.study_fields,
            "experiments": experiments,
            "study_design_hash": compute_study_design_hash(experiments),
            "skipped_configs": [asdict(point) for point in skipped],
        }
    )


def expand_grid(
    raw_study: Mapping[str, Any], study_yaml_path: str | Path | None = None
) -> tuple[list[ExperimentConfig], list[SkippedConfig]]:
    """Span a study's grid and validate every point.

    Args:
        study_yaml_path: Its file, which `base:` is relative to.

    Returns:
        The unique valid experiments in order (per backend, the last sweep key changing fastest; explicit entries after
        the grid), and the points that are not valid.

    Raises:
        ConfigError: A key is misspelt, out of place or empty, or no point is valid.
    """
    document = None
    if study_yaml_path is not None:
        document = LoadedDocument(dict(raw_study), SourceMap(), Path(study_yaml_path))
    return _resolve(plan_study(raw_study, document, {}))


def validated_points(plan: StudyPlan) -> Iterator[tuple[Point, ExperimentConfig | SkippedConfig]]:
    """Every point of a study in order, with the experiment that it is, or why it is none; none of them is kept."""
    for point in _points(plan):
        try:
            yield point, ExperimentConfig.model_validate(point.raw)
        except ValidationError as error:
            yield point, _skipped(point, error)


class SkippedReasons:
    """Why points of a study are skipped, found out as they pass by, none of which is kept.

    Args:
        most: So many reasons are told apart; points that are skipped for others are counted. `None`: all are.
    """

    def __init__(self, most: int | None = None) -> None:
        self.count = 0
        self._most = most
        self._alike: dict[str, tuple[int, set[tuple[str, str]]]] = {}
        self._others = 0

    def add(self, point: Mapping[str, Any]) -> None:
        """Take a point into account, as a `StudyConfig` holds it."""
        self.count += 1
        reason = str(point.get("reason", "not valid"))
        if reason not in self._alike and self._most is not None and len(self._alike) >= self._most:
            self._others += 1
            return
        settings = by_dotted_path(point.get("point") or point.get("raw_config") or {})
        shown = {(path, value if isinstance(value, str) else json.dumps(value)) for path, value in settings}
        count, common = self._alike.get(reason, (0, shown))
        self._alike[reason] = (count + 1, common & shown)

    def lines(self) -> list[str]:
        """One line for each reason: what its points have in common, how many they are, and why they are skipped."""
        told = []
        for reason, (count, common) in self._alike.items():
            named = ", ".join(f"{path}={value}" for path, value in sorted(common))
            counted = f"({count} points)" if count > 1 else ""
            told.append(f"{' '.join(filter(None, (named, counted))) or 'the experiment'}: {reason}")
        return [*told, *([f"{self._others:,} more points, for other reasons"] if self._others else [])]


def describe_skipped(points: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line for each reason why points of a study are skipped, see `SkippedReasons`.

    Args:
        points: As a `StudyConfig` holds them.
    """
    reasons = SkippedReasons()
    for point in points:
        reasons.add(point)
    return reasons.lines()


def apply_cycles(
    experiments: Sequence[ExperimentConfig],
    n_cycles: int,
    cycle_order: CycleOrder | str,
    study_design_hash: str | None,
    shuffle_seed: int | None = None,
) -> list[ExperimentConfig]:
    """The execution sequence: each experiment `n_cycles` times.

    Args:
        cycle_order: AAABBB, ABABAB, or a fresh order in each cycle.
        study_design_hash: Seeds the shuffle, so that the same study shuffles alike everywhere.
        shuffle_seed: Seeds it instead.

    Raises:
        ConfigError: Fewer than one cycle, more than `MAX_RUNS` runs, an unknown order, or nothing to seed the shuffle
            with.
    """
    if n_cycles < 1:
        raise ConfigError(f"n_cycles: must be at least 1, got {n_cycles}.")
    refuse_too_many_runs(len(experiments), n_cycles)
    try:
        order = CycleOrder(cycle_order)
    except ValueError as error:
        known = ", ".join(choice.value for choice in CycleOrder)
        raise ConfigError(f"cycle_order: {cycle_order!r} is unknown. Use one of: {known}.") from error
    if order is CycleOrder.SEQUENTIAL:
        return [experiment for experiment in experiments for _ in range(n_cycles)]
    if order is CycleOrder.INTERLEAVED:
        return [experiment for _ in range(n_cycles) for experiment in experiments]
    seed = study_design_hash if shuffle_seed is None else shuffle_seed
    if seed is None:
        raise ConfigError("cycle_order: shuffled needs a shuffle_seed or the study's design hash.")
    return [experiments[index] for cycle in range(n_cycles) for index in _shuffled(len(experiments), seed, cycle)]


def refuse_too_many_runs(n_experiments: int, n_cycles: int) -> None:
    """Make sure that the runs of a study can be held.

    Raises:
        ConfigError: They are more than `MAX_RUNS`.
    """
    if (runs := n_experiments * n_cycles) > MAX_RUNS:
        raise ConfigError(
            f"execution.n_cycles: {n_experiments:,} experiments in {n_cycles:,} cycles are {runs:,} runs; {MAX_RUNS:,} "
            f"is the most. Set it to {MAX_RUNS // n_experiments:,} or less."
        )


def compute_study_design_hash(experiments: Iterable[ExperimentConfig]) -> str:
    """First 16 hex digits of the SHA-256 over the experiments in order; how they are executed plays no part."""
    digest = hashlib.sha256()
    for experiment in experiments:
        digest.update(f"{_canonical(experiment)}\n".encode())
    return digest.hexdigest()[:16]


def _resolve(plan: StudyPlan) -> tuple[list[ExperimentConfig], list[SkippedConfig]]:
    if plan.n_points > MAX_POINTS:
        raise StudyTooLargeError(plan)
    unique: dict[str, ExperimentConfig] = {}
    skipped: list[SkippedConfig] = []
    valid = 0
    for _, config in validated_points(plan):
        if isinstance(config, SkippedConfig):
            skipped.append(config)
            continue
        valid += 1
        unique.setdefault(same_work_key(config), config)
    if not unique:
        raise ConfigError(_nothing_valid(plan, skipped))
    if len(unique) < valid:
        logger.warning("%s: %d of %d points repeat an earlier one and run once", plan.name, valid - len(unique), valid)
    return list(unique.values()), skipped


def _points(plan: StudyPlan) -> Iterator[Point]:
    for block in plan.blocks:
        for alternatives in itertools.product(*(axis.alternatives for axis in block.axes)):
            settings = tuple(itertools.chain.from_iterable(alternatives))
            raw = _with_settings(block.fixed, settings)
            point = deep_merge(raw, block.overrides) if block.overrides else raw
            yield Point(point, block.entry or {".".join(parts): value for parts, value in settings})


def _with_settings(fixed: Mapping[str, Any], settings: Iterable[Setting]) -> dict[str, Any]:
    """`fixed` with some fields set. Only the mappings on the way are copied: there may be very many points."""
    point = dict(fixed)
    for parts, value in settings:
        target = point
        for part in parts[:-1]:
            target[part] = target = dict(target.get(part) or {})
        leaf = parts[-1]
        under = target.get(leaf)
        if isinstance(value, Mapping) and isinstance(under, Mapping):
            target[leaf] = deep_merge(under, value)
        else:
            target[leaf] = value
    return point


def _canonical(config: ExperimentConfig) -> str:
    """What is measured, as text: the same form that `measurement_config_hash` is made of."""
    return json.dumps(config.model_dump(mode="json", exclude_none=True, exclude={"output_dir"}), sort_keys=True)


def _shuffled(count: int, seed: int | str, cycle: int) -> list[int]:
    """A permutation that is the same on every platform and Python version: indices in the order of their hashes."""
    return sorted(range(count), key=lambda index: hashlib.sha256(f"{seed}:{cycle}:{index}".encode()).digest())


def _skipped(point: Point, error: ValidationError) -> SkippedConfig:
    errors = [
        {"loc": list(details["loc"]), "type": details["type"], "msg": details["msg"]}
        for details in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    reason = "; ".join(describe_validation_error(error))
    shown = {**({"backend": point.raw["backend"]} if "backend" in point.raw else {}), **point.shown}
    return SkippedConfig(_json_ready(point.raw), reason, errors, _json_ready(shown))


def _json_ready(value: Any) -> Any:
    """`value` in what JSON has; the rest (NaN, say) as its text, for people to see."""
    if isinstance(value, Mapping):
        secret = {key for key, item in value.items() if key in SECRET_NAMES and isinstance(item, str)}
        return {str(key): "…" if key in secret else _json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_json_ready(item) for item in value]
    if value is None or isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return repr(value)


def _nothing_valid(plan: StudyPlan, skipped: Sequence[SkippedConfig]) -> str:
    reasons = Counter(point.reason for point in skipped)
    lines = [f"  - {reason} ({count}×)" for reason, count in reasons.most_common(_MAX_REASONS)]
    if len(reasons) > _MAX_REASONS:
        lines.append(f"  - and {len(reasons) - _MAX_REASONS} more reasons")
    return "\n".join([f"{plan.name}: none of the study's {len(skipped)} points is valid:", *lines])
