"""The checkpoint of a study: `manifest.json`, and a journal for what happened since it was last written.

    transition ──> one line in manifest.journal.jsonl, synced to disk     (constant cost)
              └──> manifest.json written anew, whole: at once while it is small, else within `SNAPSHOT_DELAY_S`,
                   and at once where the journal cannot be written

`load_manifest` reads both. A journal line carries an entry's whole new state, so reading a line twice, or one that
`manifest.json` already knows, changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import Any, Final

from llenergymeasure.atomic import make_unique_directory, naming_the_path, open_ours, read_plain_file, write_atomically
from llenergymeasure.config.base import portable_data
from llenergymeasure.config.models import StudyConfig
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.domain.study import EntryStatus, ExperimentManifestEntry, StudyManifest, StudyStatus
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import MANIFEST_FILE, as_known, load_record, timestamp_slug
from llenergymeasure.security import sanitize_experiment_id, validate_path
from llenergymeasure.study.plan import RunKey, design_hash_of, plan_runs

JOURNAL_FILE: Final = "manifest.journal.jsonl"
DEFAULT_NAME: Final = "study"

SNAPSHOT_DELAY_S: Final = 2.0
"""How far a large `manifest.json` may fall behind its journal, in seconds."""

SMALL_BYTES: Final = 256_000
"""A manifest up to this size is written anew with every transition."""

Cancel = Callable[[], None]
After = Callable[[float, Callable[[], None]], Cancel]
"""Does something after a number of seconds, unless it is cancelled."""

_log = logging.getLogger(__name__)


def after_in_background(seconds: float, act: Callable[[], None]) -> Cancel:
    """Do something later, in a thread that does not keep the process alive."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer.cancel


def create_study_dir(name: str | None, output_dir: str | Path, clock: Clock | None = None) -> Path:
    """Make the directory of a new study, `{name}_{UTC timestamp}/`, with `_1`, `_2`, … when that is taken.

    Args:
        name: Name of the study; `None` for one that has none.
        output_dir: Where the directory goes; made if missing.

    Raises:
        ConfigError: `output_dir` is unsafe to open.
        PersistenceError: It cannot be made; names it.
    """
    validate_path(output_dir, what="output_dir")
    stamp = timestamp_slug((clock or SystemClock()).wall())
    return make_unique_directory(Path(output_dir), f"{sanitize_experiment_id(name or DEFAULT_NAME)}_{stamp}")


def load_manifest(study_dir: str | Path) -> StudyManifest:
    """The state of a study, every transition included, also after its process was killed.

    Raises:
        PersistenceError: There is no manifest, or it is damaged; names the file and the reason.
    """
    study_dir = Path(study_dir)
    manifest = load_record(study_dir / MANIFEST_FILE, StudyManifest, "study manifest", follow_links=False)
    entries = {(entry.config_hash, entry.cycle): entry for entry in manifest.experiments}
    for entry in read_journal(study_dir / JOURNAL_FILE):
        if (entry.config_hash, entry.cycle) in entries:
            entries[entry.config_hash, entry.cycle] = entry
    tally = Counter(entry.status for entry in entries.values())
    return manifest.model_copy(update={"experiments": list(entries.values()), **_counts(tally)})


class ManifestWriter:
    """Keeps the manifest of a running study on disk.

    Args:
        study_dir: Its directory; a manifest in it is replaced.
        kept: Entries of an earlier execution that are completed and stay so.
        started_at: When the study began, where it began earlier; `None`: now.
        ran_s: Seconds for which earlier executions ran.
        after: Does something a while later; tests pass one that they set off themselves.

    Raises:
        PersistenceError: The directory cannot be written to.
    """

    def __init__(
        self,
        study: StudyConfig,
        study_dir: str | Path,
        *,
        kept: Iterable[ExperimentManifestEntry] = (),
        started_at: datetime | None = None,
        ran_s: float = 0.0,
        clock: Clock | None = None,
        after: After = after_in_background,
    ) -> None:
        self._path = Path(study_dir) / MANIFEST_FILE
        self._clock = clock or SystemClock()
        self._after = after
        self._began_s = self._clock.now() - ran_s
        done = {(entry.config_hash, entry.cycle): entry for entry in kept}
        self._lines: dict[RunKey, bytes] = {}  # as JSON, of which a large study takes least
        self._tally: Counter[EntryStatus] = Counter()
        for run in plan_runs(study):
            entry = done.get(run.key) or ExperimentManifestEntry(
                config_hash=run.config_hash, config_summary=run.title, cycle=run.cycle
            )
            self._lines[run.key] = _line(entry)
            self._tally[entry.status] += 1
        self._header = StudyManifest(
            study_name=study.name or DEFAULT_NAME,
            study_design_hash=design_hash_of(study),
            started_at=started_at or self._clock.wall(),
            total_experiments=len(self._lines),
            pending=len(self._lines),
        )
        self._study = json.dumps(portable_data(study), ensure_ascii=False).encode()
        self._lock = threading.Lock()
        self._cancel_snapshot: Cancel | None = None
        self._version = 0
        self._writing = threading.Lock()
        self._written_version = -1
        self._written_bytes = 0
        self._write(self._version, self._render())
        # Only now is what an earlier journal told in the manifest, and a line of it may be lost.
        self._journal = Journal(self._path.with_name(JOURNAL_FILE))

    @property
    def started_at(self) -> datetime:
        """When the study began (UTC)."""
        return self._header.started_at

    @property
    def ran_s(self) -> float:
        """Seconds for which the study has run, in all its executions."""
        return self._clock.now() - self._began_s

    def entry(self, config_hash: str, cycle: int) -> ExperimentManifestEntry:
        """The present entry of one run.

        Raises:
            KeyError: The study has no such run.
        """
        return _entry(self._lines[config_hash, cycle])

    def entries(self) -> list[ExperimentManifestEntry]:
        """The present entries of all runs, in order of execution."""
        return [_entry(line) for line in self._lines.values()]

    @property
    def completed(self) -> int:
        """How many runs are completed."""
        return self._tally["completed"]

    def mark_running(self, config_hash: str, cycle: int) -> None:
        """A run begins."""
        fresh = {"completed_at": None, "result_file": None, "error_type": None, "error_message": None}
        self._change(config_hash, cycle, status="running", started_at=self._clock.wall(), **fresh)

    def mark_completed(self, config_hash: str, cycle: int, result_file: str, dataset_sha256: str | None = None) -> None:
        """A run is done and its result saved.

        Args:
            result_file: The result, relative to the study directory.
            dataset_sha256: SHA-256 of the prompts it used; `None` where that is not known.
        """
        outcome = {"result_file": result_file, "dataset_sha256": dataset_sha256}
        self._change(config_hash, cycle, status="completed", completed_at=self._clock.wall(), **outcome)

    def mark_failed(self, config_hash: str, cycle: int, error_type: str, error_message: str) -> None:
        """A run ended without a result."""
        outcome = {"error_type": error_type, "error_message": error_message}
        self._change(config_hash, cycle, status="failed", completed_at=self._clock.wall(), **outcome)

    def mark_interrupted(self) -> None:
        """The user stopped the study; a run that was going on is pending again."""
        self._end("interrupted")

    def mark_study_completed(self) -> None:
        """Every run has been tried."""
        self._end("completed")

    def mark_study_failed(self) -> None:
        """The study gave up, or could not go on."""
        self._end("failed")

    def _change(self, config_hash: str, cycle: int, **changes: Any) -> None:
        key = (config_hash, cycle)
        with self._lock:
            # First here: what has happened has happened, whether it can be written or not.
            line = self._replace(key, **changes)
            self._version += 1
            try:
                self._journal.append(b'{"entry": ' + line + b"}")
            except PersistenceError as error:
                self._do_without_journal(error)
            if self._written_bytes <= SMALL_BYTES:
                with _told_only():
                    self._write(self._version, self._render())
            elif self._cancel_snapshot is None:
                self._cancel_snapshot = self._after(SNAPSHOT_DELAY_S, self._snapshot_on_time)

    def _replace(self, key: RunKey, **changes: Any) -> bytes:
        """Change the entry of a run; its new line."""
        before = _entry(self._lines[key])
        after = ExperimentManifestEntry.model_validate({**dict(before), **changes})
        self._tally.subtract([before.status])
        self._tally[after.status] += 1
        self._lines[key] = _line(after)
        return self._lines[key]

    def _do_without_journal(self, error: PersistenceError) -> None:
        """Write the manifest whole; the lines that are in the journal would undo it, so they go.

        Raises:
            PersistenceError: `error`, where that cannot be done either.
        """
        try:
            self._write(self._version, self._render())
            self._journal.empty()
        except PersistenceError:
            raise error from None
        _log.warning("%s The manifest is written whole instead.", error)

    def _end(self, status: StudyStatus) -> None:
        with self._lock:
            if self._cancel_snapshot is not None:
                self._cancel_snapshot()
                self._cancel_snapshot = None
            for key in [key for key, line in self._lines.items() if _entry(line).status == "running"]:
                self._replace(key, status="pending", started_at=None)
            completed_at = None if status == "interrupted" else self._clock.wall()
            self._header = self._header.model_copy(update={"status": status, "completed_at": completed_at})
            self._version += 1
            self._write(self._version, self._render())
            try:
                self._journal.remove()
            except PersistenceError as error:
                _log.warning("%s What it holds is in the manifest.", error)

    def _snapshot_on_time(self) -> None:
        with self._lock:
            if self._cancel_snapshot is None:  # the study ended in the meantime and wrote everything
                return
            self._cancel_snapshot = None
            version, content = self._version, self._render()
        with _told_only():
            self._write(version, content)  # outside the lock: no transition waits for a large file
            with self._lock:
                if self._version == version:  # nothing has happened since, so the journal tells nothing new
                    self._journal.empty()

    def _render(self) -> list[bytes]:
        """The manifest as JSON, in parts of which those of the runs, one a line, are made once."""
        header = self._header.model_copy(update={**_counts(self._tally), "ran_s": self.ran_s})
        opening = header.model_dump_json(exclude={"experiments", "study"}, indent=2).removesuffix("\n}")
        between = [b",\n    "] * (2 * len(self._lines) - 1)
        between[::2] = self._lines.values()
        return [
            f'{opening},\n  "experiments": [\n    '.encode(),
            *between,
            b'\n  ],\n  "study": ',
            self._study,
            b"\n}\n",
        ]

    def _write(self, version: int, content: Sequence[bytes]) -> None:
        """Write `manifest.json`, never an older version over a newer one."""
        with self._writing:
            if version > self._written_version:
                write_atomically(self._path, lambda file: file.writelines(content))
                self._written_version, self._written_bytes = version, sum(map(len, content))


class Journal:
    """An append-only file of JSON lines; each append is on disk when it returns.

    Args:
        path: The file; what is in it already is discarded.

    Raises:
        PersistenceError: It cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = FileIO(open_ours(path, os.O_WRONLY | os.O_CREAT), "wb")
        try:
            self.empty()
        except BaseException:
            self._file.close()
            raise

    def append(self, line: bytes) -> None:
        """Write one line.

        Raises:
            PersistenceError: It is not on disk; what was there before is untouched.
        """
        content = line + b"\n"
        descriptor = self._file.fileno()
        with naming_the_path(self._path):
            try:
                written = os.pwrite(descriptor, content, self._length)
                if written < len(content):  # the disk is full: the rest of the line says so
                    os.pwrite(descriptor, content[written:], self._length + written)
                os.fdatasync(descriptor)
            except OSError:
                with contextlib.suppress(OSError):  # the next line goes over what was written of this one anyway
                    os.ftruncate(descriptor, self._length)
                raise
        self._length += len(content)

    def empty(self) -> None:
        """Discard all lines: everything in them stands elsewhere.

        Raises:
            PersistenceError: They are still there.
        """
        with naming_the_path(self._path):
            os.ftruncate(self._file.fileno(), 0)
        self._length = 0

    def remove(self) -> None:
        """Close and delete the file: everything in it stands elsewhere.

        Raises:
            PersistenceError: It cannot be deleted.
        """
        with naming_the_path(self._path, "remove"):
            self._path.unlink(missing_ok=True)
            self._file.close()


def read_journal(path: Path) -> Iterator[ExperimentManifestEntry]:
    """The entries of a journal; a line that holds none, cut short by a crash for one, is left out with a warning.

    Nothing where there is no file. Fields of a newer 2.x release are left out.

    Raises:
        PersistenceError: It cannot be read.
    """
    try:
        content = read_plain_file(path, follow_links=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PersistenceError(f"Cannot read {path}: {error.strerror or error}.") from error
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry, _unknown = as_known(json.loads(line)["entry"], ExperimentManifestEntry)
        except (ValueError, TypeError, LookupError, RecursionError):
            _log.warning("%s: line %d is ignored: it was cut short, or tells of no run", path, number)
        else:
            yield entry


@contextlib.contextmanager
def _told_only() -> Iterator[None]:
    """For a manifest that cannot be written now: its journal has everything."""
    try:
        yield
    except PersistenceError as error:
        _log.warning("The manifest is behind its journal: %s", error)


def _line(entry: ExperimentManifestEntry) -> bytes:
    return entry.model_dump_json().encode()


def _entry(line: bytes) -> ExperimentManifestEntry:
    return ExperimentManifestEntry.model_validate_json(line)


def _counts(tally: Counter[EntryStatus]) -> dict[str, int]:
    return {
        "completed": tally["completed"],
        "failed": tally["failed"],
        "pending": tally["pending"] + tally["running"],
    }
