"""Exit codes, signals, and streams that close, fill up or cannot write what they are given."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llenergymeasure.cli import signals_as_interrupt
from llenergymeasure.cli.terminal import UsageError, exit_code_of, output_width, result_json
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.exceptions import (
    BackendError,
    ConfigError,
    DatasetError,
    DockerError,
    ExperimentError,
    PersistenceError,
    PreFlightError,
    StudyError,
)
from result_samples import make_rich_result
from terminal import FakeTerminal


def raising(error: BaseException) -> Callable[[], int]:
    def action() -> int:
        raise error

    return action


def invalid_config() -> int:
    ExperimentConfig.model_validate({"model": "gpt2", "n": 0})
    return 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("-q with -v"), 2),
        (ConfigError("q.yaml: no such file."), 2),
        (DatasetError("prompts.jsonl, line 3: not JSON"), 2),
        (PreFlightError(["no GPU. Pass --device cpu."]), 1),
        (BackendError("out of memory"), 1),
        (ExperimentError("no output token"), 1),
        (StudyError("not the same study"), 1),
        (DockerError("no daemon"), 1),
        (PersistenceError("Cannot write results: No space left on device."), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_kind_of_error_has_its_exit_code_and_is_told_as_it_is(error: BaseException, code: int) -> None:
    stream = io.StringIO()
    assert exit_code_of(raising(error), verbose=False, stream=stream) == code
    assert stream.getvalue() == (f"{error}\n" if str(error) else stream.getvalue())
    assert "Traceback" not in stream.getvalue()


def test_an_interrupt_says_what_became_of_the_results() -> None:
    stream = io.StringIO()
    exit_code_of(raising(KeyboardInterrupt()), verbose=True, stream=stream)
    assert stream.getvalue() == "Interrupted. Finished results are kept; nothing half-written is left.\n"


def test_pydantics_findings_are_told_field_by_field() -> None:
    stream = io.StringIO()
    assert exit_code_of(invalid_config, verbose=False, stream=stream) == 2
    assert stream.getvalue() == "n: must be at least 1, got 0\n1 problem; nothing was run.\n"


def test_a_system_error_names_its_file() -> None:
    stream = io.StringIO()
    error = PermissionError(13, "Permission denied", "/root/secret")
    assert exit_code_of(raising(error), verbose=False, stream=stream) == 1
    assert stream.getvalue() == "/root/secret: Permission denied.\n"


def test_a_fault_of_ours_is_owned_and_shows_its_traceback_on_request() -> None:
    plain, verbose = io.StringIO(), io.StringIO()
    assert exit_code_of(raising(KeyError("gpu")), verbose=False, stream=plain) == 1
    assert plain.getvalue().startswith("Internal error, KeyError: 'gpu'\nThis is a fault of llenergymeasure.")
    exit_code_of(raising(KeyError("gpu")), verbose=True, stream=verbose)
    assert verbose.getvalue().startswith("Traceback")
    assert verbose.getvalue().endswith(plain.getvalue())


class GoneTerminal(FakeTerminal):
    def write(self, text: str) -> int:
        raise OSError(5, "Input/output error")


def test_a_message_that_nobody_can_read_does_not_change_the_exit_code() -> None:
    assert exit_code_of(raising(KeyboardInterrupt()), verbose=False, stream=GoneTerminal()) == 130


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_interrupts_the_command(name: signal.Signals) -> None:
    before = signal.getsignal(name)
    with pytest.raises(KeyboardInterrupt), signals_as_interrupt():
        os.kill(os.getpid(), name)
    assert signal.getsignal(name) == before


def test_a_signal_that_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_interrupt():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_still_importing_ends_in_order(tmp_path: Path, name: signal.Signals) -> None:
    (tmp_path / "typer.py").write_text(f"import os, signal\nos.kill(os.getpid(), {int(name)})\n")
    places = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "llenergymeasure", "--help"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": places}, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


def test_an_interrupted_program_of_the_package_shows_no_traceback() -> None:
    program = "from llenergymeasure.stdout import run_program\ndef main():\n raise KeyboardInterrupt\nrun_program(main)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


PRINT = "from llenergymeasure.cli.terminal import print_result\nprint_result('x' * 100_000)"


def test_a_reader_who_leaves_early_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", PRINT], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_told() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", PRINT], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert "Cannot write to stdout: No space left on device." in done.stderr


SHOW = "import sys\nfrom llenergymeasure.cli import _make_streams_safe\n_make_streams_safe()\n"


def test_an_encoding_without_a_plus_minus_sign_costs_the_sign_and_nothing_else() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW + "print('0.412 \\xb1 0.021 J')"],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"0.412 ? 0.021 J\n"


def test_closed_streams_do_not_stop_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW + "sys.stderr.write('progress')"],
        preexec_fn=lambda: os.close(2),
        stdout=subprocess.PIPE,
        check=False,
    )
    assert done.returncode == 0


def test_json_is_plain_ascii_and_holds_the_result() -> None:
    result = make_rich_result(model_name="modèle ±")
    text = result_json(result)
    assert text.isascii()
    assert type(result).model_validate_json(text) == result


def test_a_summary_is_as_wide_as_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "72")
    assert output_width() == 72
