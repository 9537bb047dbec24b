"""Every fault at every moment of a window: the answer is right, or missing with a reason, and never plausibly wrong.

All faults of one moment are played at once, each on a board of its own, so that the whole matrix takes seconds.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pytest
from tests.nvml.scripted import (
    NVML_GPU_IS_LOST,
    NVML_NO_PERMISSION,
    NVML_NOT_SUPPORTED,
    NVML_UNKNOWN,
    NVML_VALUE_UNAVAILABLE,
    Fault,
    ScriptedGpu,
    ScriptedNvml,
    have_compiler,
)
from tests.nvml.virtual import Counter, CounterEvent
from tests.nvml.waveform import constant

from energy_fakes import nvml_meter
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.nvml import open_nvml
from llenergymeasure.domain.energy import absolute_half_width
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.exceptions import EnergyError

pytestmark = pytest.mark.skipif(not have_compiler(), reason="the scripted NVML is built with gcc, which is missing")

POWER_W = 300.0
PROVEN_S, OPENED_S, CLOSED_S = 1.4, 1.9, 3.1
"""Script times by which meters have proved themselves, when windows open and when they close."""

MOMENTS: Mapping[str, tuple[float, float]] = {
    "before it opens": (PROVEN_S, math.inf),
    "before it opens, then over": (PROVEN_S, OPENED_S + 0.4),
    "inside": (OPENED_S + 0.5, math.inf),
    "inside, then over": (OPENED_S + 0.5, CLOSED_S - 0.4),
    "when it closes": (CLOSED_S - 0.05, math.inf),
}
COUNTER, INSTANT, USAGE = "nvmlDeviceGetTotalEnergyConsumption", "field:186", "nvmlDeviceGetPowerUsage"
CODES = {
    "not supported": NVML_NOT_SUPPORTED,
    "denied": NVML_NO_PERMISSION,
    "lost": NVML_GPU_IS_LOST,
    "unknown error": NVML_UNKNOWN,
}
READINGS = ["nvmlDeviceGetTemperature", "nvmlDeviceGetMemoryInfo", "nvmlDeviceGetUtilizationRates"]
EVENTS = {
    "reset": lambda at_s, until_s: CounterEvent("reset", at_s),
    "freeze": lambda at_s, until_s: CounterEvent("freeze", at_s, until_s),
    "jump": lambda at_s, until_s: CounterEvent("jump", at_s, amount_j=1e6),
    "small jump": lambda at_s, until_s: CounterEvent("jump", at_s, amount_j=150.0),
}


def faults_of(name: str, from_s: float, until_s: float) -> dict[str, object]:
    """What to do to a board for the fault called `name`: `function: what happens`."""
    function, _, what = name.partition(": ")
    if function == "counter" and what in EVENTS:
        return {"counter_events": (EVENTS[what](from_s, until_s),)}
    functions = {"counter": [COUNTER], "power": [INSTANT, USAGE], "field": [INSTANT], "state": READINGS, "all": ["*"]}
    if what in CODES:
        kind, amount = "error", float(CODES[what])
    elif what == "slow":
        kind, amount = "sleep", 0.3
    else:
        kind, amount = "value", {"0": 0.0, "no value": float(NVML_VALUE_UNAVAILABLE), "absurd": 5e6}[what]
    return {"faults": tuple(Fault(f, kind, amount, from_s, until_s) for f in functions[function])}  # type: ignore[arg-type]


NAMES = [
    *(f"{function}: {code}" for function in ("counter", "power", "all") for code in CODES),
    *(f"{function}: {code}" for function in ("field", "state") for code in ("not supported", "unknown error")),
    *(f"power: {value}" for value in ("0", "no value", "absurd")),
    *(f"counter: {event}" for event in EVENTS),
    *(f"{function}: slow" for function in ("counter", "power", "state")),
]


@dataclass(frozen=True)
class Outcome:
    """What came of one window."""

    energy: EnergyMeasurement | None
    error: BaseException | None
    true_j: float


def measure_all(gpus: Sequence[ScriptedGpu], directory: Path) -> list[Outcome]:
    """One window on each board, all at once, each by a meter of its own."""
    found: dict[int, EnergyMeasurement] = {}
    errors: dict[int, BaseException] = {}
    with ScriptedNvml(gpus, directory) as nvml:
        clock = SystemClock()

        def until(script_s: float) -> None:
            clock.sleep(nvml.origin_s + script_s - clock.now())

        def measure(index: int) -> None:
            try:
                meter = nvml_meter([gpus[index].uuid], open_nvml(), clock, MeterOptions(poll_interval_ms=50))
                meter.prove()
                until(OPENED_S)
                handle = meter.start_tracking()
                until(CLOSED_S)
                found[index] = meter.stop_tracking(handle)
            except BaseException as error:
                errors[index] = error

        threads = [threading.Thread(target=measure, args=(index,)) for index in range(len(gpus))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [Outcome(found.get(i), errors.get(i), truth(gpu, found.get(i))) for i, gpu in enumerate(gpus)]


def truth(gpu: ScriptedGpu, energy: EnergyMeasurement | None) -> float:
    return math.nan if energy is None else gpu.energy_between_j(energy.start_s, energy.end_s)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Outcome]:
    """Every fault at every moment."""
    matrix = list(product(NAMES, MOMENTS))
    played: dict[tuple[str, str], Outcome] = {}
    for batch in chunks(matrix, 8):
        gpus = [
            ScriptedGpu.of(
                "hopper", waveform=constant(POWER_W), counter=Counter(0.1, 0.013 * i), **faults_of(n, *MOMENTS[m])
            )
            for i, (n, m) in enumerate(batch)
        ]
        played.update(zip(batch, measure_all(gpus, tmp_path_factory.mktemp("faults")), strict=True))
    return played


def chunks(items: Sequence[tuple[str, str]], size: int) -> Iterator[Sequence[tuple[str, str]]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@pytest.mark.parametrize(("name", "moment"), list(product(NAMES, MOMENTS)))
def test_a_fault_gives_the_right_joules_or_none_with_a_reason(
    name: str, moment: str, outcomes: dict[tuple[str, str], Outcome]
) -> None:
    outcome = outcomes[name, moment]
    if outcome.energy is None:
        assert isinstance(outcome.error, EnergyError)
        return
    energy = outcome.energy
    codes = {note.code for note in energy.notes}
    if energy.total_j is None:
        assert codes & {WarningCode.ENERGY_UNAVAILABLE, WarningCode.ENERGY_METHODS_DISAGREE}
        assert all(note.message for note in energy.notes)
        return
    error_j = abs(energy.total_j - outcome.true_j)
    stated_j = absolute_half_width(energy.components)
    assert error_j <= 0.03 * outcome.true_j or error_j <= stated_j or WarningCode.ENERGY_METHODS_DISAGREE in codes


COUNTER_FAULTS = [f"counter: {what}" for what in (*CODES, "jump", "slow", "freeze")]


@pytest.mark.parametrize("name", COUNTER_FAULTS)
@pytest.mark.parametrize("moment", ["before it opens", "when it closes"])
def test_a_counter_that_fails_is_replaced_and_the_method_says_so(
    name: str, moment: str, outcomes: dict[tuple[str, str], Outcome]
) -> None:
    if (name, moment) == ("counter: jump", "before it opens"):
        pytest.skip("a counter that jumped before the first reading is none the worse")
    if (name, moment) == ("counter: freeze", "when it closes"):
        pytest.skip("the counter's next move may be due only after the burst of reads is over")
    energy = outcomes[name, moment].energy
    assert energy is not None
    assert energy.method == "power_integration"
    assert energy.total_j == pytest.approx(outcomes[name, moment].true_j, rel=0.03)
    assert "integral of power samples" in " ".join(note.message for note in energy.notes)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_board_whose_state_cannot_be_read_still_has_its_joules(
    moment: str, outcomes: dict[tuple[str, str], Outcome]
) -> None:
    outcome = outcomes["state: unknown error", moment]
    assert outcome.energy is not None
    assert outcome.energy.method == "hardware_counter"
    assert outcome.energy.total_j == pytest.approx(outcome.true_j, rel=0.03)


def test_a_lost_gpu_has_no_joules(outcomes: dict[tuple[str, str], Outcome]) -> None:
    for moment in ("before it opens", "inside", "when it closes"):
        energy = outcomes["all: lost", moment].energy
        assert energy is None or energy.total_j is None


def test_no_fault_leaves_a_thread(outcomes: dict[tuple[str, str], Outcome]) -> None:
    assert outcomes
    assert not [thread for thread in threading.enumerate() if thread.name == "llem-power-sampler"]
