"""Reading a study's description: its fixed part, sweep axes, explicit entries and flags, with every key checked.

Everything wrong with the keys is collected and reported at once, before a single point is spanned.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from llenergymeasure.config.base import deep_merge, set_dotted, unwrap_dataset
from llenergymeasure.config.errors import Path as KeyPath
from llenergymeasure.config.errors import leads_nowhere, unknown_keys
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig
from llenergymeasure.config.ssot import BACKENDS, BATCH_SIZE_FIELD, BATCH_SIZE_OVERRIDE
from llenergymeasure.config.yaml_io import LoadedDocument, load_document
from llenergymeasure.exceptions import ConfigError

_STUDY_KEYS: Final = ("version", "name", "base", "sweep", "experiments", "execution")
_DEFAULT_BACKEND: Final[str] = ExperimentConfig.model_fields["backend"].default


@dataclass(frozen=True, slots=True)
class Axis:
    """One sweep key, as written and in parts, and the values it takes in order."""

    key: str
    parts: tuple[str, ...]
    values: tuple[Any, ...]

    @property
    def backend(self) -> str | None:
        """The backend it belongs to; `None` if it is for all."""
        return self.parts[0] if self.parts[0] in BACKENDS else None


@dataclass(frozen=True, slots=True)
class Block:
    """Points that differ in the values of their axes alone: one backend's grid, or one explicit experiment."""

    fixed: dict[str, Any]
    overrides: dict[str, Any]
    """What flags lay over every point, nested."""
    axes: tuple[Axis, ...] = ()


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
        return sum(math.prod(len(axis.values) for axis in block.axes) for block in self.blocks)


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
        raise ConfigError("\n".join(reader.problems))
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
            if BATCH_SIZE_OVERRIDE not in self.given:
                return own
            section, leaf = BATCH_SIZE_FIELD[backend].split(".")
            return deep_merge(own, {section: {leaf: self.given[BATCH_SIZE_OVERRIDE]}})

        blocks = []
        used: set[str] = set()
        if "sweep" in self.raw or "experiments" not in self.raw:
            used.update(backends)
            for backend in backends:
                own_axes = tuple(axis for axis in axes if axis.backend in (None, backend))
                blocks.append(Block(lying_under(backend), lying_over(backend), own_axes))
        for backend, entry in self._entries(backends):
            known = backend if backend in BACKENDS else _DEFAULT_BACKEND
            used.add(known)
            blocks.append(Block(deep_merge(lying_under(backend), unwrap_dataset(entry)), lying_over(known)))
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

    def _axes(self) -> Iterator[Axis]:
        sweep = self.raw.get("sweep", {})
        if not isinstance(sweep, Mapping) or (not sweep and "sweep" in self.raw):
            self._problem(("sweep",), "sweep: must map fields to lists of values, e.g. `precision: [fp16, bf16]`.")
            return
        for key, values in sweep.items():
            parts = tuple(part for part in str(key).split(".") if part != "synthetic")
            problems = list(_axis_problems(str(key), parts, values))
            for problem in problems:
                self._problem(("sweep", str(key)), f"sweep.{key}: {problem}")
            if not problems:
                yield Axis(str(key), parts, tuple(values))

    def _backends(self, fixed: Mapping[str, Any], axes: Iterable[Axis]) -> tuple[tuple[str, ...], bool]:
        """The backends, each of which spans a grid of its own, and whether the description or a flag names any."""
        swept = next((axis for axis in axes if axis.key == "backend"), None)
        named = fixed.get("backend", _DEFAULT_BACKEND)
        if swept is not None and "backend" in fixed and isinstance(named, list):
            self._problem(("sweep", "backend"), "sweep.backend: backend: is a list already. Keep one of the two.")
        if swept is None and "backend" in self.given and not isinstance(named, list):
            named = self.given["backend"]
        names = list(swept.values) if swept is not None else named if isinstance(named, list) else [named]
        if not names:
            self._problem(("backend",), f"backend: the list is empty. Give it some of: {', '.join(BACKENDS)}.")
        at = ("sweep", "backend") if swept is not None else ("backend",)
        for name in names:
            if name not in BACKENDS:
                self._problem(at, f"backend: {name!r} is unknown. Use: {', '.join(BACKENDS)}.")
        known = tuple(dict.fromkeys(name for name in names if name in BACKENDS))
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

    def _check_axes(self, axes: Iterable[Axis], fixed: Mapping[str, Any], backends: Iterable[str]) -> None:
        for axis in axes:
            at = ("sweep", axis.key)
            if axis.backend is not None and axis.backend not in backends:
                self._problem(
                    at,
                    f"sweep.{axis.key}: {axis.backend!r} is not among the study's backends "
                    f"({', '.join(backends)}). Add it to backend: or remove the key.",
                )
            blocked = _blocking_value(fixed, axis.parts)
            if blocked is not None:
                self._problem(
                    at, f"sweep.{axis.key}: the fixed part sets {blocked[0]}: {blocked[1]!r}. Keep one of them."
                )
            for other in axes:
                if other.parts != axis.parts and other.parts[: len(axis.parts)] == axis.parts:
                    self._problem(at, f"sweep.{axis.key}: overlaps with sweep.{other.key}. Keep one of the two.")

    def _check_sections(self, fixed: Mapping[str, Any], overrides: Mapping[str, Any], used: set[str]) -> None:
        """A section of the fixed part that no experiment would use."""
        listed = ", ".join(sorted(used))
        for name in BACKENDS:
            if fixed.get(name) is not None and name not in used:
                self._problem(
                    (name,),
                    f"{name}: config section provided but the study's backends are {listed}. "
                    f"Remove the {name}: section or add {name} to backend:.",
                )
            if name in overrides and name not in used:
                self.problems.append(f"override of {name}.* applies to no experiment: the backends are {listed}.")

    def _check_overrides(self, axes: Iterable[Axis]) -> None:
        swept = {axis.parts: f"sweep.{axis.key}" for axis in axes}
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


def _axis_problems(key: str, parts: tuple[str, ...], values: Any) -> Iterator[str]:
    """What is wrong with a sweep key, its list of values, and the keys inside them."""
    if isinstance(values, Mapping) and values:
        yield f"must be a list of values. To sweep a nested field write `{key}.{next(iter(values))}: […]`."
    elif not isinstance(values, list):
        yield f"must be a list of values, got {values!r}. Write `{key}: [{values}]`."
    elif not values:
        yield "the list is empty. Give it values, or remove the key."
    else:
        found = {}
        for value in values:
            nested: dict[str, Any] = {}
            set_dotted(nested, ".".join(parts), value)
            found.update({unknown.path: unknown.message for unknown in unknown_keys(nested, ExperimentConfig)})
        yield from found.values()
        if not found and leads_nowhere(parts, values[0], ExperimentConfig):
            yield "unknown field; its beginning holds a plain value."


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
