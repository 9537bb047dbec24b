"""Reading a study's description: its fixed part, sweep axes, explicit entries and flags, with every key checked.

Everything wrong with the keys is collected and reported at once, before a single point is spanned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llenergymeasure.config.errors import Path as KeyPath
from llenergymeasure.config.errors import leads_nowhere, unknown_keys
from llenergymeasure.config.merge import deep_merge, set_dotted, unwrap_dataset
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig
from llenergymeasure.config.ssot import BACKENDS, BATCH_SIZE_FIELD, BATCH_SIZE_OVERRIDE
from llenergymeasure.config.yaml_io import SourceMap, load_document
from llenergymeasure.exceptions import ConfigError

_STUDY_KEYS: Final = ("version", "name", "base", "sweep", "experiments", "execution")
_DEFAULT_BACKEND: Final[str] = ExperimentConfig.model_fields["backend"].default


@dataclass(frozen=True, slots=True)
class Axis:
    """One sweep key, as written and in parts, and the values it takes in order.

    Args:
        backend: The backend it belongs to; `None` if it is for all.
    """

    key: str
    parts: tuple[str, ...]
    values: tuple[Any, ...]
    backend: str | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One explicit experiment, already over the fixed part."""

    data: dict[str, Any]
    backend: str


@dataclass(frozen=True, slots=True)
class StudyPlan:
    """A study's description with its keys in order, ready to be spanned.

    Args:
        name: What to call the study in messages: its file, or "study".
        fixed: Fields common to all experiments, backend sections included.
        grid_backends: Backends the grid spans; empty when there is no grid.
        names_backend: Whether the description says which backend to use.
        axes: In the order of the file.
        overrides: Values from flags, nested, for every experiment; scoped sections for their backend only.
        study_fields: `name` and `execution`, flags included, not validated yet.
        batch_size: Value for each backend's own batch setting.
    """

    name: str
    fixed: dict[str, Any]
    grid_backends: tuple[str, ...]
    names_backend: bool
    axes: tuple[Axis, ...]
    entries: tuple[Entry, ...]
    overrides: dict[str, Any]
    study_fields: dict[str, Any]
    batch_size: Any = None

    @property
    def n_points(self) -> int:
        """Points to validate, grid and entries together."""
        grid = (
            math.prod(len(axis.values) for axis in self.axes if axis.backend in (None, backend))
            for backend in self.grid_backends
        )
        return sum(grid) + len(self.entries)

    def fixed_for(self, backend: str) -> dict[str, Any]:
        """The fixed part as it lies under one backend's points."""
        own = {key: value for key, value in self.fixed.items() if key not in BACKENDS or key == backend}
        return {**own, "backend": backend} if self.names_backend else own

    def overrides_for(self, backend: str) -> dict[str, Any]:
        """What flags set on one backend's points."""
        own = {key: value for key, value in self.overrides.items() if key not in BACKENDS or key == backend}
        if self.batch_size is not None:
            section, leaf = BATCH_SIZE_FIELD[backend].split(".")
            own = deep_merge(own, {section: {leaf: self.batch_size}})
        return own


def plan_study(
    raw: Mapping[str, Any], path: Path | None, source_map: SourceMap, overrides: Mapping[str, Any]
) -> StudyPlan:
    """Read a study's description.

    Args:
        raw: The description as parsed.
        path: Its file, which `base:` is relative to.
        source_map: The lines of its keys.
        overrides: By dotted name; `None` values do not count.

    Raises:
        ConfigError: With every key that is misspelt, misplaced, empty or contradicted by a flag.
    """
    reader = _Reader(raw, path, source_map, {key: value for key, value in overrides.items() if value is not None})
    plan = reader.read()
    if reader.problems:
        raise ConfigError("\n".join(reader.problems))
    return plan


@dataclass(slots=True)
class _Reader:
    raw: Mapping[str, Any]
    path: Path | None
    source_map: SourceMap
    overrides: dict[str, Any]
    problems: list[str] = field(default_factory=list)

    def read(self) -> StudyPlan:
        nested_overrides, study_overrides, batch_size = self._split_overrides()
        fixed = self._fixed_part()
        axes = self._axes()
        fixed, axes, backends, names_backend = self._backends(fixed, axes)
        entries = tuple(self._entries(fixed, backends, names_backend))
        has_grid = "sweep" in self.raw or "experiments" not in self.raw
        plan = StudyPlan(
            name=str(self.path) if self.path is not None else "study",
            fixed=fixed,
            grid_backends=backends if has_grid else (),
            names_backend=names_backend,
            axes=axes,
            entries=entries,
            overrides=nested_overrides,
            study_fields=self._study_fields(study_overrides),
            batch_size=batch_size,
        )
        self._check_axes(plan)
        self._check_sections(plan)
        self._check_overrides(plan)
        return plan

    def _problem(self, path: KeyPath, message: str) -> None:
        line = self.source_map.line(path)
        place = "" if self.path is None else f"{self.path}: " if line is None else f"{self.path}, line {line}: "
        self.problems.append(place + message)

    def _fixed_part(self) -> dict[str, Any]:
        fixed = {key: value for key, value in self.raw.items() if key not in _STUDY_KEYS}
        for unknown in unknown_keys(fixed, ExperimentConfig):
            self._problem(unknown.path, unknown.message)
        if "base" not in self.raw:
            return unwrap_dataset(fixed)
        return deep_merge(self._base(), unwrap_dataset(fixed))

    def _base(self) -> dict[str, Any]:
        name = self.raw["base"]
        if not isinstance(name, str) or not name.strip():
            self._problem(("base",), f"base: must be the path of an experiment file, got {name!r}.")
            return {}
        folder = self.path.parent if self.path is not None else Path()
        try:
            document = load_document(folder / name)
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

    def _axes(self) -> tuple[Axis, ...]:
        sweep = self.raw.get("sweep", {})
        if not isinstance(sweep, Mapping) or (not sweep and "sweep" in self.raw):
            self._problem(("sweep",), "sweep: must map fields to lists of values, e.g. `precision: [fp16, bf16]`.")
            return ()
        return tuple(axis for key, values in sweep.items() if (axis := self._axis(str(key), values)) is not None)

    def _axis(self, key: str, values: Any) -> Axis | None:
        at = ("sweep", key)
        parts = tuple(part for part in key.split(".") if (part != "synthetic"))
        if isinstance(values, Mapping) and values:
            inner = next(iter(values))
            self._problem(
                at, f"sweep.{key}: must be a list of values. To sweep a nested field write `{key}.{inner}: […]`."
            )
            return None
        if not isinstance(values, list):
            self._problem(at, f"sweep.{key}: must be a list of values, got {values!r}. Write `{key}: [{values}]`.")
            return None
        if not values:
            self._problem(at, f"sweep.{key}: the list is empty. Give it values, or remove the key.")
            return None
        if not self._is_field(key, parts, values):
            return None
        backend = parts[0] if parts[0] in BACKENDS else None
        return Axis(key, parts, tuple(values), backend)

    def _is_field(self, key: str, parts: tuple[str, ...], values: list[Any]) -> bool:
        """Whether a sweep key, and every key inside its values, is a field; reports what is not."""
        found = {}
        for value in values:
            nested: dict[str, Any] = {}
            set_dotted(nested, ".".join(parts), value)
            for unknown in unknown_keys(nested, ExperimentConfig):
                found[unknown.path] = unknown
        for unknown in found.values():
            self._problem(("sweep", key), f"sweep.{key}: {unknown.message}")
        if not found and leads_nowhere(parts, values[0], ExperimentConfig):
            self._problem(("sweep", key), f"sweep.{key}: unknown field; its beginning holds a plain value.")
            return False
        return not found

    def _backends(
        self, fixed: dict[str, Any], axes: tuple[Axis, ...]
    ) -> tuple[dict[str, Any], tuple[Axis, ...], tuple[str, ...], bool]:
        """Take the backends out of the fixed part or the sweep; each spans a grid of its own."""
        swept = next((axis for axis in axes if axis.key == "backend"), None)
        named = fixed.get("backend", _DEFAULT_BACKEND)
        if swept is not None and "backend" in fixed and isinstance(named, list):
            self._problem(("sweep", "backend"), "sweep.backend: backend: is a list already. Keep one of the two.")
        if swept is None and "backend" in self.overrides and not isinstance(named, list):
            named = self.overrides["backend"]
        names = list(swept.values) if swept is not None else named if isinstance(named, list) else [named]
        if not names:
            self._problem(("backend",), f"backend: the list is empty. Give it some of: {', '.join(BACKENDS)}.")
        for name in names:
            if name not in BACKENDS:
                at = ("sweep", "backend") if swept is not None else ("backend",)
                self._problem(at, f"backend: {name!r} is unknown. Use: {', '.join(BACKENDS)}.")
        known = tuple(dict.fromkeys(name for name in names if name in BACKENDS))
        rest = {key: value for key, value in fixed.items() if key != "backend"}
        is_named = swept is not None or "backend" in fixed or "backend" in self.overrides
        return rest, tuple(axis for axis in axes if axis is not swept), known, is_named

    def _entries(self, fixed: dict[str, Any], backends: tuple[str, ...], names_backend: bool) -> Iterator[Entry]:
        entries = self.raw.get("experiments", [])
        if not isinstance(entries, list) or (not entries and "experiments" in self.raw):
            self._problem(("experiments",), "experiments: must be a list with at least one experiment.")
            return
        common = {key: value for key, value in fixed.items() if key not in BACKENDS}
        for index, entry in enumerate(entries):
            if not isinstance(entry, Mapping):
                self._problem(("experiments", index), f"experiments[{index}]: must be a mapping, got {entry!r}.")
                continue
            for unknown in unknown_keys(entry, ExperimentConfig, ("experiments", index)):
                self._problem(unknown.path, unknown.message)
            own = [self.overrides.get("backend", entry["backend"])] if "backend" in entry else backends
            for backend in own:
                section = {backend: fixed[backend]} if isinstance(backend, str) and backend in fixed else {}
                named = {"backend": backend} if names_backend else {}
                data = deep_merge({**common, **section, **named}, unwrap_dataset(entry))
                yield Entry(data, backend if backend in BACKENDS else _DEFAULT_BACKEND)

    def _split_overrides(self) -> tuple[dict[str, Any], dict[str, Any], Any]:
        nested: dict[str, Any] = {}
        for name, value in self.overrides.items():
            if name != BATCH_SIZE_OVERRIDE:
                set_dotted(nested, name, value)
        study: dict[str, Any] = {key: nested.pop(key) for key in ("name", "execution") if key in nested}
        self.problems += [unknown.message for unknown in unknown_keys(nested, ExperimentConfig)]
        return unwrap_dataset(nested), study, self.overrides.get(BATCH_SIZE_OVERRIDE)

    def _study_fields(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        written = {key: self.raw[key] for key in ("name", "execution") if self.raw.get(key) is not None}
        fields = deep_merge(written, overrides)
        execution = fields.get("execution")
        if isinstance(execution, Mapping):
            for unknown in unknown_keys(execution, ExecutionConfig, ("execution",)):
                self._problem(unknown.path, unknown.message)
        return fields

    def _check_axes(self, plan: StudyPlan) -> None:
        for axis in plan.axes:
            at = ("sweep", axis.key)
            if axis.backend is not None and axis.backend not in plan.grid_backends:
                self._problem(
                    at,
                    f"sweep.{axis.key}: {axis.backend!r} is not among the study's backends "
                    f"({', '.join(plan.grid_backends)}). Add it to backend: or remove the key.",
                )
            blocked = _blocking_value(plan.fixed, axis.parts)
            if blocked is not None:
                self._problem(
                    at, f"sweep.{axis.key}: the fixed part sets {blocked[0]}: {blocked[1]!r}. Keep one of them."
                )
            for other in plan.axes:
                if other.parts != axis.parts and other.parts[: len(axis.parts)] == axis.parts:
                    self._problem(at, f"sweep.{axis.key}: overlaps with sweep.{other.key}. Keep one of the two.")

    def _check_sections(self, plan: StudyPlan) -> None:
        """A section of the fixed part that no experiment would use."""
        used = {*plan.grid_backends, *(entry.backend for entry in plan.entries)}
        for name in BACKENDS:
            if plan.fixed.get(name) is not None and name not in used:
                self._problem(
                    (name,),
                    f"{name}: config section provided but the study's backends are {', '.join(sorted(used))}. "
                    f"Remove the {name}: section or add {name} to backend:.",
                )
            if name in plan.overrides and name not in used:
                self.problems.append(
                    f"override of {name}.* applies to no experiment: the backends are {', '.join(sorted(used))}."
                )

    def _check_overrides(self, plan: StudyPlan) -> None:
        swept = {axis.parts: f"sweep.{axis.key}" for axis in plan.axes}
        sweep = self.raw.get("sweep")
        if isinstance(self.raw.get("backend"), list) or (isinstance(sweep, Mapping) and "backend" in sweep):
            swept[("backend",)] = "the list of backends"
        for name in self.overrides:
            fields = list(BATCH_SIZE_FIELD.values()) if name == BATCH_SIZE_OVERRIDE else [name]
            for parts, shown in swept.items():
                if any(_overlap(parts, tuple(path.split("."))) for path in fields):
                    self.problems.append(
                        f"override {name!r} contradicts {shown}. Leave the flag out or unlist the key."
                    )


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
