"""The check for real boards: its plan, its supervision, its report, and what it may file as evidence."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpu_check_parts import counter, report, sensor, study
from gpu_check_parts.adopt import NotEvidenceError, adopt, slug
from gpu_check_parts.lines import AS_EXPECTED, COULD_NOT_TELL, NOT_AS_EXPECTED, Book, spread
from gpu_check_parts.plan import ON_REQUEST, PARTS, REPORT_S, TOTAL_S, Part, part_named, stretch
from gpu_check_parts.supervise import run_parts
from gpu_check_parts.wheels import CARRIED, download_command, unpacked

ROOT = Path(__file__).resolve().parents[2]
CLOCKS = part_named("clocks")


def found(book: Book) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((book.directory / "part.json").read_text())["findings"]
    return content


def test_all_parts_together_end_within_eight_minutes() -> None:
    assert sum(part.limit_s for part in PARTS) + REPORT_S <= TOTAL_S < 480


def test_parts_asked_for_by_name_share_the_time() -> None:
    assert stretch([CLOCKS], 130.0) * CLOCKS.limit_s == pytest.approx(120.0)
    assert stretch(PARTS, TOTAL_S) == 1.0


def test_every_line_has_an_expectation_and_every_risk_a_line() -> None:
    lines = [(part, line) for part in (*PARTS, *ON_REQUEST) for line in part.lines]
    keys = [line.key for _, line in lines]
    assert len(set(keys)) == len(keys)
    assert all(line.key.startswith(f"{part.name}.") and line.expectation for part, line in lines)
    assert {line.risk for _, line in lines if line.risk is not None} == set(range(1, 14))


def test_the_page_lists_the_lines_of_every_risk() -> None:
    page = (ROOT / "docs/validation/README.md").read_text()
    told = {
        int(number): set(re.findall(r"`([\w.-]+)`", cell))
        for number, cell in re.findall(r"^\| (\d+) \|.*\| (.*) \|$", page, re.M)
    }
    asked: dict[int, set[str]] = {}
    for part in (*PARTS, *ON_REQUEST):
        for line in part.lines:
            if line.risk is not None:
                asked.setdefault(line.risk, set()).add(line.key)
    assert told == asked


def test_no_file_of_the_check_needs_more_than_the_standard_library_to_be_read() -> None:
    for part in (*PARTS, *ON_REQUEST):
        body = ast.parse(Path(part.module.__file__).read_text()).body
        names = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in body if isinstance(node, ast.ImportFrom)]
        packages = {name.partition(".")[0] for name in names}
        assert packages <= {*sys.stdlib_module_names, "gpu_check_parts"}, part.name


def test_a_finding_is_on_disk_as_soon_as_it_is_made(tmp_path: Path) -> None:
    book = Book(tmp_path, CLOCKS.lines)
    book.judge("clocks.limit", False, "10 %", drawn_w=float("nan"))
    book.judge("clocks.clocks", None, "not told")
    assert found(book)["clocks.limit"] == {"verdict": NOT_AS_EXPECTED, "measured": "10 %", "figures": {"drawn_w": None}}
    assert found(book)["clocks.clocks"]["verdict"] == COULD_NOT_TELL
    with pytest.raises(KeyError, match=r"clocks\.other is not among the part's LINES"):
        book.judge("clocks.other", True, "")


def fail() -> None:
    raise MemoryError


@pytest.mark.parametrize(
    ("then", "limit_s", "ended"),
    [
        (lambda: None, 20.0, "ended"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), 20.0, "failed"),
        (fail, 20.0, "failed"),
        (lambda: time.sleep(60.0), 1.5, "ran out of time"),
    ],
)
def test_a_part_that_breaks_keeps_what_it_found_and_says_why_it_lacks_the_rest(
    tmp_path: Path, then: Callable[[], object], limit_s: float, ended: str
) -> None:
    def run(part: Part) -> int:
        Book(tmp_path / part.name, part.lines).judge("clocks.limit", True, "95 %")
        then()
        return 0

    (outcome,) = run_parts([replace(CLOCKS, limit_s=limit_s)], run, tmp_path, 60.0)
    assert outcome.ended == ended
    assert outcome.findings["clocks.limit"]["verdict"] == AS_EXPECTED
    assert outcome.findings["clocks.reasons"]["verdict"] == COULD_NOT_TELL
    assert ended == "ended" or f"the part {ended}" in outcome.findings["clocks.reasons"]["measured"]


def test_a_part_for_which_no_time_is_left_is_not_begun(tmp_path: Path) -> None:
    outcomes = run_parts(PARTS[:2], lambda part: 3, tmp_path, total_s=REPORT_S)
    assert [outcome.ended for outcome in outcomes] == ["no time was left for it"] * 2


@pytest.mark.parametrize("own_session", [False, True])
def test_what_a_part_started_ends_with_it(tmp_path: Path, own_session: bool) -> None:
    """A study that is left running would draw power in all the parts that follow."""

    def run(part: Part) -> int:
        child = subprocess.Popen(["sleep", "60"], start_new_session=own_session)
        (tmp_path / "pid").write_text(str(child.pid))
        return 0

    run_parts([CLOCKS], run, tmp_path, 30.0)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def run_of(tmp_path: Path, *, rehearsal: bool, name: str = "NVIDIA H100 80GB HBM3") -> Path:
    """A finished run in which every line could not be told."""
    outcomes = run_parts([CLOCKS], lambda part: 0, tmp_path / "out" / "parts", 30.0)
    machine = {"rehearsal": rehearsal, "gpu": name, "taken_at": "2026-11-26T10:00:00Z"}
    report.write_report(tmp_path / "out", machine, outcomes, 12.0)
    return tmp_path / "out"


def house(tmp_path: Path) -> Path:
    """A copy of what filing changes."""
    root = tmp_path / "house"
    (root / "docs/validation").mkdir(parents=True)
    shutil.copy(ROOT / "docs/validation/README.md", root / "docs/validation")
    shutil.copy(ROOT / "mkdocs.yml", root)
    return root


def test_a_rehearsal_is_never_filed(tmp_path: Path) -> None:
    with pytest.raises(NotEvidenceError, match="says nothing about a real one"):
        adopt(run_of(tmp_path, rehearsal=True), house(tmp_path))
    assert "no evidence" in (tmp_path / "out/report.md").read_text()


def test_a_run_is_filed_by_board_and_time_and_named_in_index_and_navigation(tmp_path: Path) -> None:
    root = house(tmp_path)
    target = adopt(run_of(tmp_path, rehearsal=False), root)
    assert target == root / "docs/validation/nvidia-h100-80gb-hbm3/2026-11-26t10-00-00z"
    assert {"report.md", "report.json", "traces.tar.gz"} <= {file.name for file in target.iterdir()}
    index = (root / "docs/validation/README.md").read_text()
    link = "nvidia-h100-80gb-hbm3/2026-11-26t10-00-00z/report.md"
    assert (
        f"| [NVIDIA H100 80GB HBM3]({link}) | 0 as expected, 0 not as expected, 3 could not tell | nothing yet |"
        in index
    )
    assert "no evidence yet" not in index
    assert f"validation/{link}" in (root / "mkdocs.yml").read_text()
    with pytest.raises(NotEvidenceError, match="is there already"):
        adopt(tmp_path / "out", root)


def test_a_directory_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotEvidenceError, match=r"holds no report\.json"):
        adopt(tmp_path, house(tmp_path))


def test_names_of_boards_become_directories() -> None:
    assert slug("NVIDIA H200 (SXM) / 141GB") == "nvidia-h200-sxm-141gb"


def test_traces_that_are_too_large_are_left_out_largest_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = tmp_path / "sensor"
    part.mkdir()
    (part / "small.csv").write_text("1,2\n")
    (part / "large.csv").write_bytes(bytes(range(256)) * 40)
    monkeypatch.setattr(report, "FILE_LIMIT_BYTES", 400)
    packed, left_out = report.pack_traces(tmp_path, [part])
    assert (packed, left_out) == (["sensor/small.csv"], ["sensor/large.csv"])
    with tarfile.open(tmp_path / report.TRACES) as archive:
        assert archive.getnames() == ["sensor/small.csv"]


def test_the_wheels_to_bring_along_are_the_pinned_ones(tmp_path: Path) -> None:
    command = download_command()
    pinned = {
        line.partition("==")[0].lower(): line
        for name in ("run", "torch")
        for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    }
    assert all(pinned[name] in command for name in CARRIED)
    with zipfile.ZipFile(tmp_path / "some_package-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_package/__init__.py", "")
    assert unpacked(tmp_path, tmp_path / "out") == ["some_package-1.0-py3-none-any.whl"]
    assert (tmp_path / "out/some_package/__init__.py").exists()


def polls(stamp: Sequence[float], value: Sequence[int]) -> list[sensor.Poll]:
    """Calls a millisecond apart in which field 186 has these time stamps and values."""
    return [
        sensor.Poll(number / 1000, 1000.0 + number / 1000, 1e-5, 1e-5, {sensor.INSTANT: (watts, at, 0, 0)})
        for number, (at, watts) in enumerate(zip(stamp, value, strict=True))
    ]


@pytest.mark.parametrize(("stamped", "verdict"), [("query", AS_EXPECTED), ("update", NOT_AS_EXPECTED)])
def test_a_time_stamp_of_the_update_is_told_from_one_of_the_question(
    tmp_path: Path, stamped: str, verdict: str
) -> None:
    book = Book(tmp_path, sensor.LINES)
    count = 2000
    stamps = [1000.0 + (n if stamped == "query" else n // 100 * 100) / 1000 for n in range(count)]
    values = [100_000 + n // 100 for n in range(count)]
    sensor._judge_updates(book, polls(stamps, values), sensor.INSTANT, "sensor.power-period", "sensor.power-time-stamp")
    assert found(book)["sensor.power-time-stamp"]["verdict"] == verdict
    assert found(book)["sensor.power-period"]["verdict"] == AS_EXPECTED


@pytest.mark.parametrize(("follows", "verdict"), [(False, AS_EXPECTED), (True, NOT_AS_EXPECTED)])
def test_a_counter_that_sees_a_quarter_of_the_time_is_found_out(tmp_path: Path, follows: bool, verdict: str) -> None:
    book = Book(tmp_path, counter.LINES)
    rows = [
        {
            "phase": k / 8,
            "on_share": 0.25,
            "seconds": 4.0,
            "integral_j": 800.0,
            "fused_j": None,
            "counter_j": 800.0 * (1 + follows * (k == 2)),
        }
        for k in range(8)
    ]
    counter._judge_phases(book, rows, 0.1, 100.0)
    assert found(book)["counter.phases"]["verdict"] == verdict


def test_a_studys_spread_is_held_against_its_intervals(tmp_path: Path) -> None:
    for number, joules in enumerate((0.50, 0.51, 0.52)):
        directory = tmp_path / "results" / str(number)
        directory.mkdir(parents=True)
        result = {
            "measurement_config_hash": "0123456789",
            "avg_energy_per_token_j": joules,
            "avg_tokens_per_second": 100.0,
            "uncertainty": {"comparative_per_token_j": 0.012},
        }
        (directory / "result.json").write_text(json.dumps(result))
    book = Book(tmp_path / "book", study.LINES)
    study._judge_spread(book, study._read(tmp_path / "results"))
    assert found(book)["study.intervals"]["measured"] == "3 of 3 hold their configuration's mean"
    assert found(book)["study.spread"]["verdict"] == AS_EXPECTED
    assert "CV 1.96 % over 3, states ±2.35 %" in found(book)["study.spread"]["measured"]


def test_spread_is_the_coefficient_of_variation() -> None:
    assert spread([1.0, 2.0, 3.0]) == pytest.approx(50.0)


def test_evidence_names_no_path_of_the_machine_it_was_taken_on(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def run(part: Part) -> int:
        (out / "parts" / part.name / "command.txt").write_text(f"{sys.executable} {ROOT}/scripts/gpu_check.py {out}")
        raise RuntimeError(f"{ROOT} is full")

    outcomes = run_parts([CLOCKS], run, out / "parts", 30.0)
    report.write_report(out, {"rehearsal": False, "gpu": "G", "taken_at": "now"}, outcomes, 1.0)
    with tarfile.open(out / report.TRACES) as archive:
        archive.extractall(tmp_path / "traces", filter="data")
    files = [*out.glob("report.*"), *(tmp_path / "traces").rglob("*.txt")]
    texts = [file.read_text() for file in files]
    assert len(texts) == 4
    assert not any(str(path) in text for text in texts for path in (ROOT, out, sys.prefix))
    assert "REPOSITORY is full" in (out / "report.md").read_text()
