"""Reading YAML and JSON files into plain mappings, without surprises and with the line of every key.

YAML here is what people mean by it: a key given twice is an error, `010` is ten, `1e-3` is a number, `2026-01-31` and
`1:30` are text. Aliases and merge keys work; tags that would build Python objects do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from llenergymeasure.exceptions import ConfigError
from llenergymeasure.security import user_path, validate_path

_MERGE_TAG: Final = "tag:yaml.org,2002:merge"
_MAX_DEPTH: Final = 100
_MAX_BYTES: Final = 4_000_000
_MAX_VALUES: Final = 1_000_000
"""A few nested aliases can stand for billions of values; a config of a million is a mistake or an attack."""
_MAX_DIGITS: Final = 100
"""Of a number: longer ones mean nothing here, and cost time that grows with the square of their length."""


@dataclass(frozen=True, slots=True)
class SourceMap:
    """Where the keys of a document are in its file; the empty map knows no lines."""

    root: yaml.Node | None = None
    _indices: dict[int, dict[str | int, tuple[int, yaml.Node]]] = field(default_factory=dict, compare=False)

    def line(self, path: Sequence[str | int]) -> int | None:
        """Line, from 1, of the deepest part of `path` that the file has; `None` if it has none of it.

        Parts that the file leaves out are passed over: `dataset.synthetic.n` is found in the flat form too.
        """
        line, node = None, self.root
        for part in path:
            found = self._index(node).get(part)
            if found is not None:
                line, node = found
        return line

    def _index(self, node: yaml.Node | None) -> dict[str | int, tuple[int, yaml.Node]]:
        """Line and value of all that is directly in `node`; made once, for there may be very many keys."""
        if id(node) not in self._indices:
            children = reversed(list(_children(node)))  # of two alike the first counts
            self._indices[id(node)] = {key: (line, value) for key, line, value in children}
        return self._indices[id(node)]


@dataclass(frozen=True, slots=True)
class LoadedDocument:
    """A configuration file as it was written."""

    data: dict[str, Any]
    source_map: SourceMap
    path: Path

    def where(self, path: Sequence[str | int]) -> str:
        """The place of a key for an error message: `experiment.yaml, line 7`, or the file alone."""
        line = self.source_map.line(path)
        return str(self.path) if line is None else f"{self.path}, line {line}"


def load_document(path: str | Path, *, empty_is_fine: bool = False) -> LoadedDocument:
    """Read a YAML file, or a JSON file by its suffix; a file of comments alone may be fine and an empty mapping.

    Raises:
        ConfigError: The path is unsafe to open, the file cannot be read or parsed (with line and column), has a
            duplicate key, or is no mapping.
    """
    path = user_path(path)
    validate_path(path, what="configuration file")
    text = _read_text(path)
    if path.suffix.lower() == ".json":
        data, root = _parse_json(text, path)
    else:
        root = _compose(text, path)
        data = None if root is None else _Builder(path).build(root)
    if data is None and not empty_is_fine:
        raise ConfigError(f"{path}: the file is empty. Put the configuration into it, one `field: value` per line.")
    if data is not None and not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else f"the single value {str(data)[:40]!r}"
        raise ConfigError(f"{path}: expected a mapping (`field: value` lines), found {kind}.")
    return LoadedDocument(data or {}, SourceMap(root), path)


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: more than {_MAX_BYTES / 1e6:g} MB, which no configuration has. Shorten it.")
        return content.decode("utf-8-sig")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}). Save the file as UTF-8.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error


def _parse_json(text: str, path: Path) -> tuple[Any, yaml.Node | None]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        for name, value in pairs:
            if name in mapping:
                raise ConfigError(f"{path}: duplicate key {name!r}. Keep one of them.")
            mapping[name] = value
        return mapping

    if not text.strip():
        return None, None
    try:
        data = json.loads(text, object_pairs_hook=unique, parse_int=_to_int)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}, column {error.colno}: invalid JSON: {error.msg}.") from error
    except (RecursionError, ValueError) as error:
        raise ConfigError(f"{path}: invalid JSON: nested too deeply, or a number too long.") from error
    try:
        return data, _compose(text, path)  # JSON is YAML, near enough to find the lines
    except ConfigError:
        return data, None


_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):  # type: ignore[misc]
    """A safe loader with the scalar types of YAML 1.2, plus `yes`/`no`/`on`/`off`, underscores and merge keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own protocol)


def _resolve_scalars(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


_resolve_scalars("bool", "true|True|TRUE|false|False|FALSE|yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF", "tTfFyYnNoO")
_resolve_scalars("null", "~|null|Null|NULL", "~nN")
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("^$"), [""])
_resolve_scalars("int", r"[-+]?[0-9][0-9_]*|0o[0-7_]+|0x[0-9a-fA-F_]+|0b[01_]+", "-+0123456789")
_resolve_scalars(
    "float",
    r"[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)|[-+]?[0-9][0-9_]*\.[0-9_]*"
    r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
    "-+0123456789.",
)
_resolve_scalars("merge", "<<", "<")


def _compose(text: str, path: Path) -> yaml.Node | None:
    try:
        _check_depth(text, path)
        node: yaml.Node | None = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        if mark and (tabbed := _line_indented_with_tab(text, mark.line)) is not None:
            raise ConfigError(
                f"{path}, line {tabbed}: indented with a tab, which YAML does not allow. Use spaces."
            ) from error
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        detail = " ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{path}{place}: invalid YAML: {detail}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: invalid YAML: {str(error).splitlines()[0]}.") from error
    return node


def _line_indented_with_tab(text: str, index: int) -> int | None:
    """Number, from 1, of the line at `index` or the one before it if there is a tab before its text."""
    for number, line in list(enumerate(text.splitlines(), start=1))[max(index - 1, 0) : index + 1]:
        if "\t" in line[: len(line) - len(line.lstrip())]:
            return number
    return None


def _check_depth(text: str, path: Path) -> None:
    """Refuse deep nesting before composing, which recurses (in C: without any limit), and very many values."""
    depth = values = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        values += isinstance(event, yaml.NodeEvent)
        if values > 2 * _MAX_VALUES:
            raise ConfigError(f"{path}: more than {_MAX_VALUES:,} values. Shorten it.")
        if depth > _MAX_DEPTH:
            line = f", line {event.start_mark.line + 1}" if event.start_mark is not None else ""
            raise ConfigError(f"{path}{line}: nested more than {_MAX_DEPTH} levels deep.")


class _Builder:
    """Turns YAML nodes into plain values; an alias gives the very object its anchor gave."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._built: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}
        self._open: set[int] = set()

    def build(self, node: yaml.Node) -> Any:
        key = id(node)
        if key in self._built:
            return self._built[key]
        if key in self._open:
            raise self._error(node, "the alias refers to itself")
        self._open.add(key)
        if isinstance(node, yaml.MappingNode):
            value: Any = self._mapping(node)
            inner = [item for _, item in node.value]
        elif isinstance(node, yaml.SequenceNode):
            self._expect_tag(node, "seq")
            value = [self.build(item) for item in node.value]
            inner = node.value
        else:
            value, inner = self._scalar(node), []
        self._sizes[key] = 1 + sum(self._sizes[id(item)] for item in inner)
        if self._sizes[key] > _MAX_VALUES:
            raise self._error(node, f"more than {_MAX_VALUES:,} values once aliases are expanded")
        self._open.discard(key)
        self._built[key] = value
        return value

    def _mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        self._expect_tag(node, "map")
        merged: dict[str, Any] = {}
        own: dict[str, Any] = {}
        for key_node, value_node in node.value:
            value = self.build(value_node)
            if key_node.tag == _MERGE_TAG:
                merged = {**self._merged(value_node, value), **merged}
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                shown = repr(key_node.value)[:40] if isinstance(key_node, yaml.ScalarNode) else "(a list or mapping)"
                raise self._error(key_node, f"the key {shown} is not text. Put it in quotes")
            if key in own:
                raise self._error(key_node, f"duplicate key {key!r}. Keep one of them")
            own[key] = value
        return {**merged, **own}

    def _merged(self, node: yaml.Node, value: Any) -> dict[str, Any]:
        sources = value if isinstance(value, list) else [value]
        if not all(isinstance(source, dict) for source in sources):
            raise self._error(node, "`<<` merges mappings only")
        return {key: item for source in reversed(sources) for key, item in source.items()}

    def _scalar(self, node: yaml.Node) -> Any:
        text: str = node.value
        convert = _SCALARS.get(node.tag.removeprefix("tag:yaml.org,2002:"))
        if convert is None:
            raise self._error(node, f"the tag {node.tag!r} is not supported. Write a plain value")
        try:
            return convert(text)
        except ValueError as error:
            raise self._error(node, f"{text[:40]!r} is not a valid {node.tag.rpartition(':')[2]}") from error

    def _expect_tag(self, node: yaml.Node, name: str) -> None:
        if node.tag != f"tag:yaml.org,2002:{name}":
            raise self._error(node, f"the tag {node.tag!r} is not supported. Write a plain {name}")

    def _error(self, node: yaml.Node, what: str) -> ConfigError:
        mark = node.start_mark
        return ConfigError(f"{self._path}, line {mark.line + 1}, column {mark.column + 1}: {what}.")


def _to_int(text: str) -> int:
    digits = text.replace("_", "").lower()
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    bases = {"0x": 16, "0o": 8, "0b": 2}
    return int(digits, bases.get(digits[:2], 10))


def _to_float(text: str) -> float:
    return float(text.replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


def _to_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "on"):
        return True
    if text.lower() in ("false", "no", "off"):
        return False
    raise ValueError(text)


_SCALARS: Final[dict[str, Callable[[str], Any]]] = {
    "str": str,
    "int": _to_int,
    "float": _to_float,
    "bool": _to_bool,
    "null": lambda _: None,
}


def _children(node: yaml.Node | None) -> Iterator[tuple[str | int, int, yaml.Node]]:
    """Key or index, line and value of all that is directly in `node`; what is merged into it comes last."""
    if isinstance(node, yaml.SequenceNode):
        yield from ((index, item.start_mark.line + 1, item) for index, item in enumerate(node.value))
    elif isinstance(node, yaml.MappingNode):
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE_TAG:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif isinstance(key, yaml.ScalarNode):
                yield key.value, key.start_mark.line + 1, value
        for source in merged:
            yield from _children(source)
