"""Where the text of prompts is read: a JSON Lines file, the Hub, or a local directory with a data set in it.

    path/to/prompts.jsonl                        {"prompt": "…", "max_new_tokens": 128}   (the limit is optional)
    hf:<id>[/<config>][:<split>][@<revision>]    hf:AIEnergyScore/text_generation:train@main
    hf:<path>[:<split>]                          hf:./my-data:test   (the path starts with . / or ~)

All records go through the same checks; every error says where its record stands. Rows of the Hub come through the
`datasets` library and are streamed, so that only those needed travel. In offline mode (`HF_HUB_OFFLINE=1`) nothing can
be streamed: the library's cache is read instead.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Protocol

from llenergymeasure.datasets.types import DatasetIdentity, DatasetSource, RawPrompt, RawPrompts
from llenergymeasure.exceptions import DatasetError
from llenergymeasure.resilience import retry_on_error
from llenergymeasure.security import validate_path

logger = logging.getLogger(__name__)

HUB_PREFIX: Final = "hf:"

PROMPT_COLUMNS: Final = (
    "prompt",
    "text",
    "instruction",
    "question",
    "input",
    "content",
    "query",
    "document",
    "article",
)
"""Columns that may hold the prompt; the first of them that a data set has as text is taken."""

_LIMIT_KEY: Final = "max_new_tokens"
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_GRAMMAR: Final = "hf:<id>[/<config>][:<split>][@<revision>], or hf:./<directory>[:<split>]"
_HUB_SPEC: Final = re.compile(
    r"(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:/(?P<config>[\w.+-]+))?(?::(?P<split>\w+(?:\.\w+)*))?(?:@(?P<revision>[\w./-]+))?"
)
_LOCAL_SPLIT: Final = re.compile(r"(?P<path>.+):(?P<split>\w+(?:\.\w+)*)")
_TRANSIENT_STATUS: Final = frozenset({408, 429, 500, 502, 503, 504})
_TRANSIENT_TYPES: Final = frozenset(
    {"ConnectionError", "TransportError", "ClientConnectionError", "Timeout", "TimeoutError"}
)

Row = Mapping[str, Any]


def read_jsonl(path: Path, n: int, *, name: str, source: DatasetSource = "file") -> RawPrompts:
    """Read the first `n` prompts of a file; every line is checked, so that a bad one shows before anything is measured.

    Blank lines are skipped, a byte order mark is tolerated, keys other than the two above are ignored.

    Args:
        name: How the configuration names the file; starts every error message.

    Raises:
        DatasetError: The file cannot be read, a line is bad, there is no prompt in it, or fewer than `n`.
    """
    digest = hashlib.sha256()
    prompts: list[RawPrompt] = []
    count = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                digest.update(line)
                text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
                prompt = _parse_line(text, f"dataset {name}, line {number}")
                if prompt is not None:
                    count += 1
                    if count <= n:
                        prompts.append(prompt)
    except OSError as error:
        raise DatasetError(f"dataset {name}: cannot be read: {error.strerror or error}") from error
    if count < n:
        raise too_few(name, count, n)
    return RawPrompts(tuple(prompts), DatasetIdentity(name, digest.hexdigest(), n, source))


def too_few(name: str, available: int, n: int) -> DatasetError:
    """The error for asking more prompts of a data set than it has."""
    if available == 0:
        return DatasetError(f"dataset {name}: it is empty; n = {n} prompts were asked for")
    return DatasetError(
        f"dataset {name}: n = {n} prompts were asked for, it has {available}. Set n to at most {available}."
    )


def _parse_line(line: bytes, where: str) -> RawPrompt | None:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start}). Save the file as UTF-8."
        ) from error
    if not text.strip():
        return None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets nested without end
        raise DatasetError(f"{where}: not usable JSON: {error}") from error
    if not isinstance(record, dict):
        raise DatasetError(f'{where}: must be a JSON object like {{"prompt": "…"}}, got {type(record).__name__}')
    return _parse_record(record, where, "prompt")


def _parse_record(record: Row, where: str, key: str) -> RawPrompt:
    """Check a record and take the prompt and its optional output limit from it; other keys are left alone."""
    if key not in record:
        found = ", ".join(map(repr, record)) or "none"
        raise DatasetError(f'{where}: no "{key}" key (keys found: {found}). Each prompt needs one.')
    text, limit = record[key], _whole(record.get(_LIMIT_KEY))
    if not isinstance(text, str):
        raise DatasetError(f'{where}: "{key}" must be text, got {type(text).__name__} {_shorten(text)}')
    if not text.strip():
        raise DatasetError(f'{where}: "{key}" is empty. Remove the line or give it a prompt.')
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DatasetError(
            f'{where}: "{key}" holds half a character ({text[error.start]!r}, an unpaired surrogate) '
            f"at position {error.start}"
        ) from error
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise DatasetError(f'{where}: "{_LIMIT_KEY}" must be a whole number of at least 1, got {_shorten(limit)}')
    return RawPrompt(text, limit)


def _whole(limit: Any) -> Any:
    """A limit as tables write it: `16.0` is 16, and NaN is what a missing one becomes in a column of numbers."""
    if isinstance(limit, float) and (math.isnan(limit) or limit.is_integer()):
        return None if math.isnan(limit) else int(limit)
    return limit


def _shorten(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


@dataclass(frozen=True, slots=True)
class HubSpec:
    """Where the rows are.

    Args:
        location: Id on the Hub, or the absolute path of a directory.
        config: Configuration (subset) of the data set; `None`: its default.
        split: `None`: the only one there is, else `train`.
        revision: Branch, tag or commit; `None`: the Hub's default.
    """

    location: str
    is_local: bool = False
    config: str | None = None
    split: str | None = None
    revision: str | None = None


class RowLibrary(Protocol):
    """What is needed of the `datasets` library and the Hub's client."""

    def commit(self, spec: HubSpec) -> str | None:
        """Commit hash that `spec` means now; `None` where it cannot be asked (offline, a local directory)."""

    def splits(self, spec: HubSpec, revision: str | None) -> Mapping[str, Iterable[Row]]:
        """The splits of `spec` (only its own where it names one), their rows read when iterated."""


def parse_hub_spec(dataset: str) -> HubSpec:
    """Take an `hf:` name apart.

    Raises:
        DatasetError: It does not follow the grammar above.
        ConfigError: A local path that is unsafe to open.
    """
    text = dataset.removeprefix(HUB_PREFIX)
    if text.startswith((".", "/", "~")):
        return _parse_local(dataset, text)
    match = _HUB_SPEC.fullmatch(text)
    if match is None:
        raise DatasetError(f"dataset {dataset}: not of the form {_GRAMMAR}")
    parts = match.groupdict()
    return HubSpec(parts["id"], config=parts["config"], split=parts["split"], revision=parts["revision"])


def load_hub_prompts(
    dataset: str, n: int, *, library: RowLibrary | None = None, sleep: Callable[[float], None] = time.sleep
) -> RawPrompts:
    """Read the first `n` prompts that `dataset` names; blank ones are passed over, as some data sets have them.

    Args:
        library: Where the rows come from; `None`: the real one.
        sleep: Waits a number of seconds between attempts on a failing network.

    Raises:
        DatasetError: The `datasets` package is missing, the data set, configuration, split or column cannot be had, or
            it has fewer than `n` prompts. A gated data set's message names `HF_TOKEN`.
    """
    spec = parse_hub_spec(dataset)
    rows_library = library or _import_library()

    @retry_on_error(exceptions=(Exception,), is_transient=_is_transient, sleep=sleep, what=f"Reading {dataset}")
    def read() -> tuple[str | None, list[RawPrompt]]:
        commit = rows_library.commit(spec)
        rows = _choose_split(dataset, rows_library.splits(spec, commit or spec.revision), spec.split)
        return commit, list(islice(_prompts(dataset, rows), n))

    try:
        commit, prompts = read()
    except DatasetError:
        raise
    except Exception as error:  # the library raises some forty types of its own and of its HTTP clients
        raise DatasetError(f"dataset {dataset}: {_explain(error)}") from error
    if len(prompts) < n:
        raise too_few(dataset, len(prompts), n)
    source: DatasetSource = "directory" if spec.is_local else "hub"
    return RawPrompts(tuple(prompts), DatasetIdentity(dataset, hash_prompts(prompts), n, source, commit))


def hash_prompts(prompts: Iterable[RawPrompt]) -> str:
    """SHA-256 (64 hex digits) over the prompts in order, as the JSON Lines file that would hold just them."""
    digest = hashlib.sha256()
    for prompt in prompts:
        limit = {} if prompt.max_new_tokens is None else {"max_new_tokens": prompt.max_new_tokens}
        digest.update((json.dumps({"prompt": prompt.text, **limit}, ensure_ascii=False) + "\n").encode("utf-8"))
    return digest.hexdigest()


class DatasetsLibrary:
    """The real one: the `datasets` package, with `huggingface_hub` underneath it."""

    def __init__(self) -> None:
        import datasets

        self._datasets = datasets
        self._offline = bool(datasets.config.HF_HUB_OFFLINE)

    def commit(self, spec: HubSpec) -> str | None:
        """Ask the Hub which commit the revision stands for."""
        if spec.is_local or self._offline:
            return None
        import huggingface_hub

        sha: str | None = huggingface_hub.HfApi().dataset_info(spec.location, revision=spec.revision).sha
        return sha

    def splits(self, spec: HubSpec, revision: str | None) -> Mapping[str, Iterable[Row]]:
        """Open the data set, streaming unless offline."""
        marks = (Path(spec.location, mark) for mark in ("state.json", "dataset_dict.json"))
        if spec.is_local and any(mark.is_file() for mark in marks):  # made by `save_to_disk`
            found = self._datasets.load_from_disk(spec.location)
            return found if isinstance(found, dict) else {spec.split or "train": found}
        found = self._datasets.load_dataset(
            spec.location,
            name=spec.config,
            split=spec.split,
            revision=revision,
            streaming=spec.is_local or not self._offline,
        )
        return {spec.split: found} if spec.split else found


def _parse_local(dataset: str, text: str) -> HubSpec:
    path, split = validate_path(text, what="dataset"), None
    match = _LOCAL_SPLIT.fullmatch(text)
    if not path.exists() and match:
        path, split = validate_path(match["path"], what="dataset"), match["split"]
    if not path.is_dir():
        raise DatasetError(f"dataset {dataset}: no such directory: {path}")
    return HubSpec(str(path), is_local=True, split=split)


def _import_library() -> RowLibrary:
    try:
        return DatasetsLibrary()
    except ImportError as error:
        raise DatasetError(
            "reading data sets from the Hub needs the 'datasets' package. "
            'Install it with: pip install "llenergymeasure[datasets]"'
        ) from error


def _choose_split(dataset: str, splits: Mapping[str, Iterable[Row]], wanted: str | None) -> Iterable[Row]:
    name = wanted or (next(iter(splits)) if len(splits) == 1 else "train")
    if name in splits:
        return splits[name]
    choices = ", ".join(splits)
    if wanted:
        raise DatasetError(f"dataset {dataset}: no split '{wanted}' (there are: {choices})")
    raise DatasetError(
        f"dataset {dataset}: several splits ({choices}) and none is 'train'. Name one: {dataset}:<split>"
    )


def _prompts(dataset: str, rows: Iterable[Row]) -> Iterable[RawPrompt]:
    column: str | None = None
    blank = 0
    for number, row in enumerate(rows, start=1):
        column = column or _prompt_column(dataset, row)
        value = row.get(column)
        if value is None or (isinstance(value, str) and not value.strip()):
            blank += 1
            continue
        yield _parse_record(row, f"dataset {dataset}, row {number}", column)
    if blank:
        logger.info("dataset %s: passed over %d rows without a prompt in column '%s'", dataset, blank, column)


def _prompt_column(dataset: str, row: Row) -> str:
    present = [column for column in PROMPT_COLUMNS if column in row]
    for column in present:
        if row[column] is None or isinstance(row[column], str):
            return column
    if present:
        kinds = ", ".join(f"'{column}' ({type(row[column]).__name__})" for column in present)
        raise DatasetError(f"dataset {dataset}: no column with prompts as text: {kinds}")
    columns = ", ".join(f"'{column}'" for column in row) or "no columns"
    raise DatasetError(
        f"dataset {dataset}: no column with prompts: it has {columns}; needed: one of {', '.join(PROMPT_COLUMNS)}"
    )


def _is_transient(error: Exception) -> bool:
    """Whether trying again can help. The HTTP clients below the Hub changed over time, so their types go by name."""
    if isinstance(error, DatasetError) or _says_offline(error):
        return False
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return status in _TRANSIENT_STATUS
    return any(base.__name__ in _TRANSIENT_TYPES for base in type(error).__mro__)


def _says_offline(error: Exception) -> bool:
    description = f"{type(error).__name__}: {error}"
    return "OfflineMode" in description or "offline mode" in description.lower()


def _explain(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    summary = text.splitlines()[0]
    if _says_offline(error):
        return (
            f"not in the local cache, and HF_HUB_OFFLINE forbids asking the Hub. Unset it once to fetch it. ({summary})"
        )
    if "gated" in text.lower() or type(error).__name__ == "GatedRepoError":
        return f"access is restricted. Accept its terms on the Hub and set HF_TOKEN. ({summary})"
    return f"cannot be read: {type(error).__name__}: {summary}"
