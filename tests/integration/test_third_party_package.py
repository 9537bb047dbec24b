"""The example package, installed by pip as a user would: its own tests pass, `llem run` measures with both parts."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest

from llem_process import Workplace
from llenergymeasure.results.persistence import load_result

pytest.importorskip("setuptools", reason="builds the package")

PACKAGE = Path(__file__).resolve().parents[2] / "examples" / "third-party"
INSTALL = "install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation --target"
SHORTER = """
n: 4
max_output_tokens: 2000
decoder: {preset: deterministic, min_new_tokens: 2000}
warmup: {n_warmup: 1, thermal_floor_seconds: 0}
baseline: {duration_seconds: 5}
"""
"""The example, with less to do."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package, built from a copy: pip leaves files beside what it builds."""
    base = tmp_path_factory.mktemp("third-party")
    source = shutil.copytree(PACKAGE, base / "source", ignore=shutil.ignore_patterns("build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", *INSTALL.split(), str(base / "site"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr
    return base / "site"


@pytest.fixture
def workplace(tmp_path: Path, site: Path) -> Workplace:
    paths = [str(site), *filter(None, sys.path)]
    return Workplace(tmp_path, tmp_path / "home", {"PYTHONPATH": ":".join(paths)})


@pytest.fixture
def power_log(tmp_path: Path) -> Iterator[Path]:
    """What the logger of a power meter writes: 80 W, ten times a second."""
    path, ended = tmp_path / "power.log", threading.Event()

    def sample() -> str:
        return f"{datetime.now(timezone.utc).isoformat()} 80.0\n"

    def write() -> None:
        while not ended.wait(0.1):
            with path.open("a") as log:
                log.write(sample())

    path.write_text(sample())
    logger = threading.Thread(target=write)
    logger.start()
    yield path
    ended.set()
    logger.join()


def test_its_own_tests_pass_with_pytest_alone(workplace: Workplace) -> None:
    """Neither this repository's options nor their plugins are needed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:timeout"]
    done = workplace.call([*command, str(PACKAGE / "tests")])
    assert done.returncode == 0, done.stdout + done.stderr


def test_llem_run_measures_with_its_engine_and_its_meter(workplace: Workplace, power_log: Path) -> None:
    corpus = PACKAGE / "corpus.txt"
    text = (PACKAGE / "run.yaml").read_text().replace("examples/third-party/corpus.txt", str(corpus))
    kept = text.split("n: 50", 1)[0] + text[text.index("energy:") : text.index("decoder:")]
    workplace.write("run.yaml", kept + text[text.index("passthrough_kwargs:") :] + SHORTER)
    done = workplace.run("run", "run.yaml", "--output", "results", LLEM_POWER_LOG=str(power_log))
    assert done.returncode == 0, done.stderr
    result = load_result(workplace.results()[0])
    breakdown = result.energy_breakdown
    assert breakdown is not None
    assert (result.backend, result.backend_version, result.output_tokens) == ("markov", "0.1", 4 * 2000)
    assert (breakdown.meter, breakdown.meter_version, breakdown.scope) == ("power-log", "0.1", "machine")
    assert result.total_energy_j == pytest.approx(80.0 * result.total_inference_time_sec, rel=1e-3)
    assert breakdown.baseline_power_w == pytest.approx(80.0, rel=1e-3)
    assert result.uncertainty is not None
    assert {part.name for part in result.uncertainty.budget} == {"accuracy class", "edges", "idle power"}
    assert result.effective_config["passthrough_kwargs"] == {"order": 4, "batch_size": 8}


def test_without_the_log_the_run_is_refused_with_what_is_missing(workplace: Workplace) -> None:
    workplace.write("run.yaml", (PACKAGE / "run.yaml").read_text().replace("examples/third-party", str(PACKAGE)))
    done = workplace.run("run", "run.yaml")
    assert done.returncode != 0
    assert "energy.backend: power-log does not work here" in done.stderr
    assert "Set LLEM_POWER_LOG" in done.stderr
    assert workplace.results() == []


def test_llem_config_shows_both(workplace: Workplace, power_log: Path) -> None:
    shown = workplace.run("config", LLEM_POWER_LOG=str(power_log)).stdout
    assert "llem-markov 0.1" in shown
    assert "power-log" in shown
    assert "version 0.1 answers" in shown
