"""Reading a study's description: its fixed part, sweep axes, explicit entries and flags, with every key checked.

Everything wrong with the keys is collected and reported at once, before a single point is spanned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llenergymeasure.config.base import deep_merge, set_dotted, unwrap_dataset
from llenergymeasure.config.engines import known_backends, no_batch_setting
from llenergymeasure.config.errors import MAX_TOLD, did_you_mean, leads_nowhere, unknown_keys
from llenergymeasure.config.errors import Path as KeyPath
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig
from llenergymeasure.config.ssot import BACKENDS, BATCH_SIZE_FIELD, BATCH_SIZE_OVERRIDE
from llenergymeasure.config.yaml_io import LoadedDocument, load_document
from llenergymeasure.exceptions import ConfigError
from llenergymeasure.security import quoted, user_path

_MAX_AXES: Final = 1000
"""More than an experiment has fields."""
_STUDY_KEYS: Final = ("version", "name", "base", "sweep", "experiments", "execution")
_DEFAULT_BACKEND: Final[str] = ExperimentConfig.model_fields["backend"].default


Setting = tuple[tuple[str, ...], Any]
"""A field by the parts of its path, and its value."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One sweep key and the alternatives it spans in order: values of one field, or fields that are set together."""

    key: str
    alternatives: tuple[tuple[Setting, ...], ...]

    @property
    def paths(self) -> set[tuple[str, ...]]:
        """Every field that any of the alternatives sets."""
        return {parts for alternative in self.alternatives for parts, _ in alternative}

    @property
    def backends(self) -> set[str]:
        """The backends whose sections it sets fields in."""
        return {parts[0] for parts in self.paths} & set(BACKENDS)

    def on(self, backend: str) -> Axis:
        """Its alternatives for one backend: those that set nothing of another's."""
        others = set(BACKENDS) - {backend}
        own = (settings for settings in self.alternatives if not {parts[0] for parts, _ in settings} & others)
        return Axis(self.key, tuple(own))


@dataclass(frozen=True, slots=True)
class Block:
    """Points that differ in the values of their axes alone: one backend's grid, or one explicit experiment."""

    fixed: dict[str, Any]
    overrides: dict[str, Any]
    """What flags lay over every point, nested."""
    axes: tuple[Axis, ...] = ()
    entry: Mapping[str, Any] = field(default_factory=dict)
    """The explicit experiment as it was written; empty for a grid."""


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """A study's description with its keys in order, ready to be spanned."""

    name: str
    """What to call it in messages: its file, or "study"."""
    blocks: tuple[Block, ...]
    study_fields: dict[str, Any]
    """`name` and `execution`, flags included, not validated yet."""

    @property
    def n_points(self) -> int:
        """Points to validate, grid and entries together."""
        return sum(math.prod(len(axis.alternatives) for axis in block.axes) for block in self.blocks)


def plan_study(raw: Mapping[str, Any], document: LoadedDocument | None, overrides: Mapping[str, Any]) -> StudyPlan:
    """Read a study's description.

    Args:
        document: Its file, which `base:` is relative to.
        overrides: By dotted name; `None` values do not count.

    Raises:
        ConfigError: With every key that is misspelt, misplaced, empty or contradicted by a flag.
    """
    reader = _Reader(raw, document, {key: value for key, value in overrides.items() if value is not None})
    plan = reader.read()
    if reader.problems:
        told = reader.problems[:MAX_TOLD]
        more = len(reader.problems) - len(told)
        raise ConfigError("\n".join([*told, *([f"… and {more:,} more"] if more else [])]))
    return plan


@dataclass(slots=True)
class _Reader:
    raw: Mapping[str, Any]
    document: LoadedDocument | None
    given: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    def read(self) -> StudyPlan:
        overrides: dict[str, Any] = {}
        for name, value in self.given.items():
            if name != BATCH_SIZE_OVERRIDE:
                set_dotted(overrides, name, value)
        study_overrides: dict[str, Any] = {key: overrides.pop(key) for key in ("name", "execution") if key in overrides}
        self.problems += [unknown.message for unknown in unknown_keys(overrides, ExperimentConfig)]
        overrides = unwrap_dataset(overrides)
        fixed = self._fixed_part()
        axes = tuple(self._axes())
        backends, is_named = self._backends(fixed, axes)
        fixed.pop("backend", None)
        axes = tuple(axis for axis in axes if axis.key != "backend")

        def lying_under(backend: str) -> dict[str, Any]:
            return {**_without_others(fixed, backend), **({"backend": backend} if is_named else {})}

        def lying_over(backend: str) -> dict[str, Any]:
            own = _without_others(overrides, backend)
            if BATCH_SIZE_OVERRIDE not in self.given or backend not in BATCH_SIZE_FIELD:
                return own
            section, leaf = BATCH_SIZE_FIELD[backend].split(".")
            return deep_merge(own, {section: {leaf: self.given[BATCH_SIZE_OVERRIDE]}})

        blocks = []
        used: set[str] = set()
        if "sweep" in self.raw or "experiments" not in self.raw:
            used.update(backends)
            for backend in backends:
                own_axes = (axis.on(backend) for axis in axes)
                spanned = tuple(axis for axis in own_axes if axis.alternatives)
                blocks.append(Block(lying_under(backend), lying_over(backend), spanned))
        for backend, entry in self._entries(backends):
            known = backend if backend in known_backends() else _DEFAULT_BACKEND
            used.add(known)
            fixed_and_own = deep_merge(lying_under(backend), unwrap_dataset(entry))
            blocks.append(Block(fixed_and_own, lying_over(known), entry=entry))
        study_fields = self._study_fields(study_overrides)
        self._check_axes(axes, fixed, backends)
        self._check_sections(fixed, overrides, used)
        self._check_overrides(axes)
        return StudyPlan(str(self.document.path) if self.document else "study", tuple(blocks), study_fields)

    def _problem(self, path: KeyPath, message: str) -> None:
        self.problems.append(f"{self.document.where(path)}: {message}" if self.document else message)

    def _fixed_part(self) -> dict[str, Any]:
        fixed = {key: value for key, value in self.raw.items() if key not in _STUDY_KEYS}
        for unknown in unknown_keys(fixed, ExperimentConfig):
            self._problem(unknown.path, unknown.message)
        return deep_merge(self._base(), unwrap_dataset(fixed))

    def _base(self) -> dict[str, Any]:
        if "base" not in self.raw:
            return {}
        name = self.raw["base"]
        if not isinstance(name, str) or not name.strip():
            self._problem(("base",), f"base: must be the path of an experiment file, got {name!r}.")
            return {}
        folder = self.document.path.parent if self.document else Path()
        try:
            document = load_document(folder / user_path(name))
        except ConfigError as error:
            self._problem(("base",), f"base: {error}")
            return {}
        data = {key: value for key, value in document.data.items() if key != "version"}
        if set(data) & {"sweep", "experiments", "base"}:
            self._problem(("base",), f"base: {document.path} is itself a study. Name an experiment file.")
            return {}
        for unknown in unknown_keys(data, ExperimentConfig):
            self.problems.append(f"{document.where(unknown.path)}: {unknown.message}")
        return unwrap_dataset(data)

    def _axes(self) -> Iterator[Axis]:
        sweep = self.raw.get("sweep", {})
        if not isinstance(sweep, Mapping) or (not sweep and "sweep" in self.raw):
            self._problem(("sweep",), "sweep: must map fields to lists of values, e.g. `precision: [fp16, bf16]`.")
            return
        if len(sweep) > _MAX_AXES:
            self._problem(("sweep",), f"sweep: has {len(sweep):,} keys; {_MAX_AXES} is the most.")
            return
        for key, values in sweep.items():
            is_group = _is_group(key, values)
            problems = list(_group_problems(values) if is_group else _axis_problems(key, values))
            for problem in problems:
                self._problem(("sweep", key), f"sweep.{key}: {problem}")
            if not problems:
                alternatives = values if is_group else [{key: value} for value in values]
                yield Axis(key, tuple(tuple(_settings(alternative)) for alternative in alternatives))

    def _backends(self, fixed: Mapping[str, Any], axes: Iterable[Axis]) -> tuple[tuple[str, ...], bool]:
        """The backends, each of which spans a grid of its own, and whether the description or a flag names any."""
        swept = next((axis for axis in axes if axis.key == "backend"), None)
        named = fixed.get("backend", _DEFAULT_BACKEND)
        if swept is not None and "backend" in fixed and isinstance(named, list):
            self._problem(("sweep", "backend"), "sweep.backend: backend: is a list already. Keep one of the two.")
        if swept is None and "backend" in self.given and not isinstance(named, list):
            named = self.given["backend"]
        names = named if isinstance(named, list) else [named]
        if swept is not None:
            names = [value for ((_, value),) in swept.alternatives]
        if not names:
            self._problem(("backend",), f"backend: the list is empty. Give it some of: {', '.join(known_backends())}.")
        at = ("sweep", "backend") if swept is not None else ("backend",)
        here = known_backends()
        for name in names:
            if name not in here:
                self._problem(
                    at, f"backend: {quoted(name)} is unknown. Use: {', '.join(here)}{did_you_mean(name, here)}."
                )
            elif name not in BACKENDS and BATCH_SIZE_OVERRIDE in self.given:
                self.problems.append(no_batch_setting(name))
        known = tuple(dict.fromkeys(name for name in names if name in here))
        return known, swept is not None or "backend" in fixed or "backend" in self.given

    def _entries(self, backends: Iterable[str]) -> Iterator[tuple[Any, Mapping[str, Any]]]:
        """Every explicit experiment with its backend, or once for each of the study's."""
        entries = self.raw.get("experiments", [])
        if not isinstance(entries, list) or (not entries and "experiments" in self.raw):
            self._problem(("experiments",), "experiments: must be a list with at least one experiment.")
            return
        for index, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                self._problem(("experiments", index), f"experiments[{index}]: must be a mapping, got {entry!r}.")
                continue
            for unknown in unknown_keys(entry, ExperimentConfig, ("experiments", index)):
                self._problem(unknown.path, unknown.message)
            own = [self.given.get("backend", entry["backend"])] if "backend" in entry else backends
            yield from ((backend, entry) for backend in own)

    def _study_fields(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        written = {key: self.raw[key] for key in ("name", "execution") if self.raw.get(key) is not None}
        fields = deep_merge(written, overrides)
        if isinstance(fields.get("execution"), Mapping):
            for unknown in unknown_keys(fields["execution"], ExecutionConfig, ("execution",)):
                self._problem(unknown.path, unknown.message)
        return fields

    def _check_axes(self, axes: Sequence[Axis], fixed: Mapping[str, Any], backends: Iterable[str]) -> None:
        for axis in axes:
            at = ("sweep", axis.key)
            for backend in sorted(axis.backends - set(backends)):
                self._problem(
                    at,
                    f"sweep.{axis.key}: {backend!r} is not among the study's backends "
                    f"({', '.join(backends)}). Add it to backend: or remove the key.",
                )
            for parts in sorted(axis.paths):
                blocked = _blocking_value(fixed, parts)
                if blocked is not None:
                    self._problem(
                        at, f"sweep.{axis.key}: the fixed part sets {blocked[0]}: {blocked[1]!r}. Keep one of them."
                    )
        for axis, other in itertools.combinations(axes, 2):
            if any(_overlap(left, right) for left in axis.paths for right in other.paths):
                self._problem(
                    ("sweep", axis.key), f"sweep.{axis.key}: overlaps with sweep.{other.key}. Keep one of the two."
                )

    def _check_sections(self, fixed: Mapping[str, Any], overrides: Mapping[str, Any], used: set[str]) -> None:
        """A section of the fixed part that no experiment would use."""
        listed = ", ".join(sorted(used))
        for name in BACKENDS if used else ():
            if fixed.get(name) is not None and name not in used:
                self._problem(
                    (name,),
                    f"{name}: config section provided but the study's backends are {listed}. "
                    f"Remove the {name}: section or add {name} to backend:.",
                )
            if name in overrides and name not in used:
                self.problems.append(f"override of {name}.* applies to no experiment: the backends are {listed}.")

    def _check_overrides(self, axes: Iterable[Axis]) -> None:
        swept = {parts: f"sweep.{axis.key}" for axis in axes for parts in axis.paths}
        sweep = self.raw.get("sweep")
        if isinstance(self.raw.get("backend"), list) or (isinstance(sweep, Mapping) and "backend" in sweep):
            swept[("backend",)] = "the list of backends"
        for name in self.given:
            fields = list(BATCH_SIZE_FIELD.values()) if name == BATCH_SIZE_OVERRIDE else [name]
            for parts, shown in swept.items():
                if any(_overlap(parts, tuple(path.split("."))) for path in fields):
                    self.problems.append(
                        f"override {name!r} contradicts {shown}. Leave the flag out or unlist the key."
                    )


def _without_others(data: Mapping[str, Any], backend: str) -> dict[str, Any]:
    """`data` without the sections of other backends."""
    return {key: value for key, value in data.items() if key not in BACKENDS or key == backend}


def _is_group(key: str, values: Any) -> bool:
    """Whether a sweep key names alternatives, each a mapping of fields that go together, instead of a field."""
    if "." in key or key in ExperimentConfig.model_fields or not isinstance(values, list):
        return False
    return any(isinstance(value, Mapping) for value in values) and all(
        value is None or isinstance(value, Mapping) for value in values
    )


def _settings(alternative: Mapping[str, Any] | None) -> Iterator[Setting]:
    for key, value in (alternative or {}).items():
        yield tuple(part for part in key.split(".") if part != "synthetic"), value


def _group_problems(alternatives: Sequence[Mapping[str, Any] | None]) -> Iterator[str]:
    """What is wrong with the alternatives of a group, and with the fields they set."""
    if not any(alternatives):
        yield "none of its alternatives sets a field. Give at least one a field, or remove the key."
    for alternative in alternatives:
        settings = list(_settings(alternative))
        if any(parts == ("backend",) for parts, _ in settings):
            yield (
                "backend: cannot be part of a group. List the backends under backend: (what sets a field of one "
                "backend's section is left out for the others), or use experiments:."
            )
        clashing = [(a, b) for (a, _), (b, _) in itertools.combinations(settings, 2) if _overlap(a, b)]
        for left, right in clashing:
            yield f"{'.'.join(left)} and {'.'.join(right)} overlap in one alternative. Keep one of the two."
        if not clashing:
            yield from _field_problems(settings)


def _axis_problems(key: str, values: Any) -> Iterator[str]:
    """What is wrong with a sweep key that names a field, and with its list of values."""
    if isinstance(values, Mapping) and values:
        yield f"must be a list of values. To sweep a nested field write `{key}.{next(iter(values))}: […]`."
    elif not isinstance(values, list):
        yield f"must be a list of values, got {quoted(values)}. Write `{key}: [{values}]`."
    elif not values:
        yield "the list is empty. Give it values, or remove the key."
    else:
        yield from _field_problems([setting for value in values for setting in _settings({key: value})])


def _field_problems(settings: Iterable[Setting]) -> Iterator[str]:
    """What is wrong with the names of fields that are to be set, and with the keys inside their values."""
    told = set()
    for parts, value in settings:
        nested: dict[str, Any] = {}
        set_dotted(nested, ".".join(parts), value)
        found = [unknown.message for unknown in unknown_keys(nested, ExperimentConfig)]
        if not found and leads_nowhere(parts, value, ExperimentConfig):
            found = ["unknown field; its beginning holds a plain value."]
        yield from (message for message in found if message not in told)
        told.update(found)


def _overlap(left: tuple[str, ...], right: tuple[str, ...]) -> bool:
    shared = min(len(left), len(right))
    return left[:shared] == right[:shared]


def _blocking_value(fixed: Mapping[str, Any], parts: tuple[str, ...]) -> tuple[str, Any] | None:
    """The first plain value in the way of a nested path, with its own path."""
    value: Any = fixed
    for depth, part in enumerate(parts[:-1]):
        value = value.get(part)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            return ".".join(parts[: depth + 1]), value
    return None
