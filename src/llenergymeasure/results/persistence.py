"""Results on disk.

    {output_dir}/{model-slug}_{backend}_{UTC timestamp}/
        result.json            the ExperimentResult
        timeseries.parquet     its 1 Hz time series, where there is one
        ...                    raw samples and generated texts, where they were asked for
        report.html            all of it for people, drawn when the rest is there

`result.json` is written last: what has one is complete.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from datetime import datetime
from fnmatch import fnmatchcase
from functools import reduce
from operator import getitem
from pathlib import Path, PurePath
from typing import Any, Final, NoReturn, Protocol, TypeVar, runtime_checkable

from pydantic import BaseModel, ValidationError

from llenergymeasure.atomic import (
    copy_atomically,
    make_unique_directory,
    read_plain_file,
    write_atomically,
    write_bytes_atomically,
)
from llenergymeasure.constants import RESULT_SCHEMA_VERSION
from llenergymeasure.domain.base import as_utc
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult
from llenergymeasure.exceptions import PersistenceError, ResultRescuedError
from llenergymeasure.results import export
from llenergymeasure.security import sanitize_experiment_id, user_path

RESULT_FILE: Final = "result.json"
TIMESERIES_FILE: Final = "timeseries.parquet"
STUDY_FILE: Final = "study_summary.json"
MANIFEST_FILE: Final = "manifest.json"
TABLE_FILE: Final = "results.parquet"
REPORT_FILE: Final = "report.html"

TRACE_PATTERN: Final = "trace*.parquet"
"""Names of raw power samples; those of further processes are numbered."""

OUTPUTS_FILE: Final = "outputs.jsonl"

_MAJOR: Final = RESULT_SCHEMA_VERSION.split(".")[0]
_MAX_PROBLEMS_SHOWN: Final = 5

_log = logging.getLogger(__name__)

ModelT = TypeVar("ModelT", bound=BaseModel)


class ResultFileWarning(UserWarning):
    """A result file could be read, but not everything is as it should be."""


class ResultNotSavedError(PersistenceError):
    """A finished run could be written nowhere; its figures are in `result`."""

    def __init__(self, result: ExperimentResult, message: str) -> None:
        self.result = result
        super().__init__(message)

    def __reduce__(self) -> tuple[type[ResultNotSavedError], tuple[ExperimentResult, str]]:
        return (type(self), (self.result, str(self)))


@runtime_checkable
class ResultsRepository(Protocol):
    """Keeps results."""

    def save(self, result: ExperimentResult, timeseries: Path | None = None, extra_files: Sequence[Path] = ()) -> Path:
        """Store a result with the files that belong beside it, and say where.

        Raises:
            PersistenceError: It could not be stored where it should be.
        """

    def load(self, path: Path) -> ExperimentResult:
        """Read a stored result back."""


class DirectoryRepository:
    """A `ResultsRepository` that gives each result a directory of its own under `root`, made if missing."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(self, result: ExperimentResult, timeseries: Path | None = None, extra_files: Sequence[Path] = ()) -> Path:
        """Store a result with the files that belong beside it, see `save_result_or_rescue`."""
        return save_result_or_rescue(result, self._root, timeseries, extra_files)

    def load(self, path: Path) -> ExperimentResult:
        """Read a result back from where `save` put it, or from a path relative to the root; see `load_result`."""
        return load_result(path if path.exists() else self._root / path)


def save_result(
    result: ExperimentResult,
    output_dir: str | Path,
    timeseries: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
) -> Path:
    """Save a result in a new directory of its own under `output_dir`; returns the path of its `result.json`.

    A time series is copied beside it as `timeseries.parquet`, further files under their own names. In the file,
    `timeseries`, `trace` and `outputs` name what is saved beside it, and nothing else.

    Raises:
        PersistenceError: Something could not be written; names the path. The new directory is removed again.
    """
    directory = make_unique_directory(user_path(output_dir), directory_name(result))
    try:
        if timeseries is not None:
            copy_atomically(Path(timeseries), directory / TIMESERIES_FILE)
        for extra in extra_files:
            copy_atomically(Path(extra), directory / Path(extra).name)
        named = {
            "timeseries": None if timeseries is None else TIMESERIES_FILE,
            "trace": _first_named(TRACE_PATTERN, extra_files),
            "outputs": _first_named(OUTPUTS_FILE, extra_files),
        }
        return to_json(result.model_copy(update=named), directory / RESULT_FILE)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)  # ours alone, and not a result without its result.json
        raise


def save_result_or_rescue(
    result: ExperimentResult,
    output_dir: str | Path,
    timeseries: str | Path | None = None,
    extra_files: Sequence[str | Path] = (),
    rescue_dir: str | Path | None = None,
) -> Path:
    """As `save_result`; where that fails, save it elsewhere before saying so. Nothing measured is lost.

    Args:
        rescue_dir: Where it goes instead; the system's directory for temporary files by default.

    Raises:
        ResultRescuedError: It could not be saved in `output_dir` and is in `rescue_dir` now; names both.
        ResultNotSavedError: It could be saved in neither; names both, and holds it.
    """
    try:
        return save_result(result, output_dir, timeseries, extra_files)
    except PersistenceError as error:
        saved = _save_what_fits(result, rescue_dir, timeseries, extra_files, error)
        raise ResultRescuedError(Path(output_dir), saved, str(error)) from error


def refuge() -> Path:
    """Where a result goes whose own place is lost: the system's directory for temporary files.

    Raises:
        PersistenceError: There is none that can be written to.
    """
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:
        raise PersistenceError(f"{error.strerror or error}.") from error


def load_result(path: str | Path) -> ExperimentResult:
    """Read a `result.json`, or the one in a directory; see `from_json`."""
    path = user_path(path)
    return from_json(path / RESULT_FILE if path.is_dir() else path)


def to_json(result: BaseModel, path: str | Path) -> Path:
    """Write a result, or another record of ours, as JSON; an existing file is replaced in one step.

    Raises:
        PersistenceError: The file cannot be written, or the record holds what JSON cannot; names the path.
    """
    path = user_path(path)
    try:
        text = json.dumps(result.model_dump(mode="json"), indent=2, ensure_ascii=False, allow_nan=False)
        content = text.encode("utf-8")
    except ValueError as error:  # a NaN, an infinity, half a character: never written as invalid JSON
        raise PersistenceError(f"Cannot write {path}: the record cannot be JSON ({error}).") from error
    write_bytes_atomically(path, content + b"\n")
    return path


def from_json(path: str | Path) -> ExperimentResult:
    """Read a result file.

    Unknown fields of a newer 2.x file and a missing time series are a `ResultFileWarning` each.

    Raises:
        PersistenceError: The file is missing, damaged, or of another major version; names the file and the reason.
    """
    path = user_path(path)
    result = load_record(path, ExperimentResult, "result")
    if result.timeseries is not None and not (path.parent / PurePath(result.timeseries).name).is_file():
        warnings.warn(f"{path}: its time series {result.timeseries} is missing.", ResultFileWarning, stacklevel=2)
    return result


def load_record(path: Path, model: type[ModelT], what: str, *, follow_links: bool = True) -> ModelT:
    """Read a versioned record.

    Fields that this release does not know are left out with a `ResultFileWarning`; they come from a newer 2.x release.

    Args:
        model: Has a `schema_version`.
        what: What the file is, for messages: `result`, `study summary`.
        follow_links: `False` for a file that is never a link unless somebody planted it.

    Raises:
        PersistenceError: The file is unreadable, damaged, or of another major version; names the file and the reason.
    """
    content = _read_json_object(path, follow_links)
    _check_version(path, content.get("schema_version"), what)
    try:
        record, unknown = as_known(content, model)
    except ValidationError as error:
        raise _not_a_record(path, what, error) from error
    if unknown:
        shown = ", ".join(unknown[:_MAX_PROBLEMS_SHOWN]) + (", …" if len(unknown) > _MAX_PROBLEMS_SHOWN else "")
        warnings.warn(
            f"{path}: left out {len(unknown)} unknown field(s) ({shown}); the file has schema "
            f"{content['schema_version']}, this release knows {RESULT_SCHEMA_VERSION}.",
            ResultFileWarning,
            stacklevel=3,
        )
    return record


def as_known(content: Any, model: type[ModelT]) -> tuple[ModelT, list[str]]:
    """A record from its JSON, without what `model` does not know at any depth; the dotted paths of that.

    Raises:
        pydantic.ValidationError: What is left is no such record.
    """
    try:
        return model.model_validate(content), []
    except ValidationError as error:
        unknown = [problem["loc"] for problem in error.errors() if problem["type"] == "extra_forbidden"]
    for *parents, name in unknown:
        del reduce(getitem, parents, content)[name]
    return model.model_validate(content), [_dotted(location) for location in unknown]


def load_study(path: str | Path) -> StudyResult:
    """Read a study's `study_summary.json`, or the one in a study directory; fails as `from_json` does."""
    path = user_path(path)
    file = path / STUDY_FILE if path.is_dir() else path
    return load_record(file, StudyResult, "study summary").kept_in(file.parent)


def to_parquet(
    result: ExperimentResult | Iterable[ExperimentResult],
    path: str | Path,
    columns: Sequence[export.Heading] | None = None,
) -> Path:
    """Write one flat row per result; replaces a file in one step.

    Args:
        columns: See `results.export.tabulate`.

    Raises:
        PersistenceError: The file cannot be written; names the path.
    """
    path = user_path(path)
    columns, rows = export.tabulate([result] if isinstance(result, ExperimentResult) else result, columns)
    write_atomically(path, lambda file: export.write_parquet(columns, rows, file))
    return path


def directory_name(result: ExperimentResult) -> str:
    """Name of a result's directory before it is made unique: `{model-slug}_{backend}_{UTC timestamp}`."""
    model = result.model_name or str(result.effective_config.get("model") or "") or result.experiment_id
    return f"{model_slug(model)}_{sanitize_experiment_id(result.backend)}_{timestamp_slug(result.start_time)}"


def is_result_directory(name: str) -> bool:
    """Whether a name is one that `directory_name` gives, or that was made unique from one."""
    return re.fullmatch(r".+_\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(_\d+)?", name) is not None


def goes_beside_result(name: str) -> bool:
    """Whether a file of this name is saved before the `result.json` that makes a directory a result."""
    patterns = (TIMESERIES_FILE, TRACE_PATTERN, OUTPUTS_FILE, "*.log")
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def model_slug(model: str) -> str:
    """Short, portable name of a model: `Qwen/Qwen2.5-0.5B` becomes `qwen2.5-0.5b`, a path its last part."""
    last = model.replace("\\", "/").rstrip("/ ").rpartition("/")[2]
    return sanitize_experiment_id(last if last.strip() else "model").lower()


def timestamp_slug(moment: datetime) -> str:
    """A moment in UTC as a file name holds it: `2026-02-18T14-30-05`; one without a time zone is taken as UTC."""
    return as_utc(moment).strftime("%Y-%m-%dT%H-%M-%S")


def _first_named(pattern: str, files: Sequence[str | Path]) -> str | None:
    return next((name for name in (Path(file).name for file in files) if fnmatchcase(name, pattern)), None)


def _save_what_fits(
    result: ExperimentResult,
    rescue_dir: str | Path | None,
    timeseries: str | Path | None,
    extra_files: Sequence[str | Path],
    first: PersistenceError,
) -> Path:
    """Save with all files if possible, else the result alone; the figures matter most."""
    try:
        directory = rescue_dir or refuge()
        try:
            return save_result(result, directory, timeseries, extra_files)
        except PersistenceError as error:
            _log.warning("Saving the result without its time series and other files: %s", error)
        return save_result(result, directory)
    except PersistenceError as second:
        raise ResultNotSavedError(result, f"The result could not be saved: {first} Nor elsewhere: {second}") from first


def _read_json_object(path: Path, follow_links: bool) -> dict[str, Any]:
    try:
        text = read_plain_file(path, follow_links=follow_links).decode("utf-8")
        content = json.loads(text, parse_constant=_refuse_constant)
        if "\\ud" in text.lower():  # an escaped half of a character parses, but could be written nowhere
            json.dumps(content, ensure_ascii=False).encode("utf-8")
    except OSError as error:
        raise PersistenceError(f"Cannot read {path}: {error.strerror or error}.") from error
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise PersistenceError(f"{path} is not valid JSON ({where}). It was cut short or damaged.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, NaN, a number of thousands of digits, endless nesting
        raise PersistenceError(f"{path} is not valid JSON: {error}. It was damaged.") from error
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise PersistenceError(f"{path} holds a JSON {kind}, not an object. It is not one of our files.")
    return content


def _check_version(path: Path, version: object, what: str) -> None:
    if version is None:
        raise PersistenceError(f"{path} has no schema_version: it is not a {what} of llenergymeasure 2.")
    if not isinstance(version, str) or not re.fullmatch(r"\d+(\.\d+)+", version):
        raise PersistenceError(f"{path}: schema_version {version!r} is not a version.")
    if version.split(".")[0] != _MAJOR:
        raise PersistenceError(
            f"{path} has schema version {version}; this release reads {_MAJOR}.x only. "
            "Read it with the release of llenergymeasure that wrote it."
        )


def _not_a_record(path: Path, what: str, error: ValidationError) -> PersistenceError:
    problems = [f"{_dotted(problem['loc']) or 'the file'}: {problem['msg']}" for problem in error.errors()]
    shown = "\n".join(f"  - {problem}" for problem in problems[:_MAX_PROBLEMS_SHOWN])
    more = len(problems) - _MAX_PROBLEMS_SHOWN
    tail = f"\n  - and {more} more" if more > 0 else ""
    return PersistenceError(f"{path} is not a valid {what}:\n{shown}{tail}")


def _dotted(location: Sequence[int | str]) -> str:
    return ".".join(map(str, location))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
