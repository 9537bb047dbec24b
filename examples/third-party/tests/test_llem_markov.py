"""The suites of llenergymeasure on this package's engine and meter, and what is particular to them."""

import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
from llem_markov.engine import MarkovBackend
from llem_markov.meter import PowerLogMeter

from llenergymeasure import ExperimentConfig
from llenergymeasure.core.backends.conformance import check_backend
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.conformance import check_meter
from llenergymeasure.exceptions import EnergyError

CORPUS = Path(__file__).resolve().parents[1] / "corpus.txt"
CONFIG = ExperimentConfig.model_validate(
    {"model": str(CORPUS), "backend": "markov", "precision": "fp32", "decoder": {"temperature": 0.0}}
)


@pytest.fixture
def power_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A log that gets 100 W every 20 ms."""
    path, ended = tmp_path / "power.log", threading.Event()

    def write() -> None:
        with path.open("a") as log:
            while not ended.wait(0.02):
                log.write(f"{datetime.now(timezone.utc).isoformat()} 100.0\n")
                log.flush()

    logger = threading.Thread(target=write)
    path.write_text(f"{datetime.now(timezone.utc).isoformat()} 100.0\n")
    logger.start()
    monkeypatch.setenv("LLEM_POWER_LOG", str(path))
    yield path
    ended.set()
    logger.join()


def test_the_engine_keeps_every_promise() -> None:
    assert [str(failure) for failure in check_backend(lambda: MarkovBackend(SystemClock()), CONFIG)] == []


def test_what_the_engine_does_not_apply_it_refuses() -> None:
    asked = {"precision": "bf16", "passthrough_kwargs": {"ordr": 2}, "decoder": {"top_p": 0.5}}
    config = ExperimentConfig.model_validate({**CONFIG.model_dump(), **asked})
    assert len(MarkovBackend(SystemClock()).preflight(config)) == 3


def test_the_meter_keeps_every_promise(power_log: Path) -> None:
    assert [str(failure) for failure in check_meter(PowerLogMeter, window_s=0.8)] == []


def test_a_constant_power_times_the_window_is_its_energy(power_log: Path) -> None:
    clock = SystemClock()
    meter = PowerLogMeter(("cpu",), clock)
    handle = meter.start_tracking()
    clock.sleep(0.3)
    energy = meter.stop_tracking(handle)
    assert energy.total_j == pytest.approx(100.0 * energy.duration_sec)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2020-01-01T00:00:00Z 100.0\n", "no sample of the last 5 s"),
        ("yesterday 100.0\n", "cannot be read"),
        ("", "no sample"),
    ],
)
def test_a_log_that_says_nothing_now_is_no_meter(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "power.log").write_text(line)
    monkeypatch.setenv("LLEM_POWER_LOG", str(tmp_path / "power.log"))
    with pytest.raises(EnergyError, match=said):
        PowerLogMeter(("cpu",), SystemClock()).is_available()
