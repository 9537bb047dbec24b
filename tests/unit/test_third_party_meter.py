"""A meter that another package registers: named in a config, held to the same checks, told as what it is."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from command_line import CommandLine
from energy_fakes import PowercapTree
from fake_nvml import FakeGpu, FakeNvml
from fakes import ConstantMeter, VirtualClock
from installed_packages import InstalledPackages
from llenergymeasure import ExperimentConfig, run_experiment
from llenergymeasure.config.loader import load_experiment_config
from llenergymeasure.config.meters import registered_meters
from llenergymeasure.config.user_config import load_user_config
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.conformance import check_meter
from llenergymeasure.core.energy.external import RESERVED, ExternalStrategy
from llenergymeasure.core.energy.integrate import PartUnknownError, TracedWindow
from llenergymeasure.core.energy.meter import Meter
from llenergymeasure.core.energy.rapl import RaplStrategy
from llenergymeasure.core.energy.select import (
    CPU_PRIORITY,
    GPU_PRIORITY,
    describe_energy_backends,
    select_energy_backend,
)
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions, TrackingHandle
from llenergymeasure.core.gpu.driver import DriverMissingError, Gpu, GpuDriver, find_gpus
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.metrics.throttle import SW_POWER_CAP, throttle_info
from llenergymeasure.core.metrics.warnings import window_warnings
from llenergymeasure.core.timeseries import has_samples
from llenergymeasure.domain.energy import BudgetComponent
from llenergymeasure.domain.experiment import compute_measurement_config_hash
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.exceptions import EnergyError, PreFlightError
from llenergymeasure.results.attribution import attribute_energy
from result_samples import make_record

METER = """
from third_party_meter import WallMeter as Meter
"""
RESOLUTION = BudgetComponent(name="resolution", kind="counter_resolution", half_width_j=0.5)

Install = Callable[..., str]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a package with a meter of 50 W; gives the meter's name."""
    packages = InstalledPackages(tmp_path / "site", monkeypatch)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))

    def installed(name: str, source: str = METER, package: str = "", value: str = "") -> str:
        package = package or f"{name}-for-llem"
        packages.add(package, source, "energy", f"{name} = {value or package.replace('-', '_') + ':Meter'}")
        return name

    return installed


@dataclass
class Wall:
    """A meter of a machine of 50 W, whose every answer can be bent."""

    clock: VirtualClock
    bend: Callable[[EnergyMeasurement], object] = lambda energy: energy
    opens_at: Callable[[float], object] = TrackingHandle
    name: str = "whatever"
    available: bool = True

    def is_available(self) -> bool:
        return self.available

    def start_tracking(self) -> TrackingHandle:
        return self.opens_at(self.clock.now())  # type: ignore[return-value]

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        start_s, end_s = handle.start_s, self.clock.now()
        energy = EnergyMeasurement(
            start_s, end_s, 50.0 * (end_s - start_s), "power_integration", "machine", components=(RESOLUTION,)
        )
        return self.bend(energy)  # type: ignore[return-value]


def metered(wall: Wall, options: MeterOptions | None = None, gpus: Sequence[Gpu] = ()) -> Meter:
    """A meter of ours over such a one."""
    options = options or MeterOptions()
    return Meter(ExternalStrategy("wall", "1.2", wall, wall.clock, options, gpus), wall.clock, options)


def measured(bend: Callable[[EnergyMeasurement], object], options: MeterOptions | None = None) -> EnergyMeasurement:
    """Ten seconds of 50 W through a meter that tells them bent."""
    clock = VirtualClock()
    meter = metered(Wall(clock, bend), options)
    handle = meter.start_tracking()
    clock.sleep(10.0)
    return meter.stop_tracking(handle)


def no_driver() -> GpuDriver:
    raise DriverMissingError("no driver")


def test_its_name_is_valid_in_files_studies_and_the_users_settings(install: Install, tmp_path: Path) -> None:
    install("wall_a")
    assert registered_meters() == ("wall_a",)
    assert load_experiment_config(None, {"model": "m", "energy": {"backend": "wall_a"}}).energy.backend == "wall_a"
    settings = tmp_path / "config.yaml"
    settings.write_text("measurement: {energy_backend: wall_a}\n")
    assert load_user_config(settings, environ={}).measurement.energy_backend == "wall_a"


def test_without_its_package_it_is_refused_with_the_names_that_would_do(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("model: m\nenergy: {backend: wall_a}\n")
    with pytest.raises(ValueError, match=r"(?s)energy\.backend.*auto.*nvml.*zeus.*codecarbon.*rapl.*wall_a"):
        load_experiment_config(file)


def test_it_is_never_chosen_by_itself(install: Install, tmp_path: Path) -> None:
    install("wall_b")
    host = Host(open_driver=no_driver, root=tmp_path / "bare")
    assert select_energy_backend("wall_b", ["cpu"], host=host).name == "wall_b"
    assert select_energy_backend("auto", ["cpu"], host=host).name != "wall_b"


def test_it_measures_a_run_and_the_result_says_what_it_is(install: Install, tmp_path: Path) -> None:
    result = run_experiment(
        model="builtin/tiny-llama",
        n=2,
        max_output_tokens=4,
        precision="fp32",
        pytorch={"device": "cpu"},
        warmup={"n_warmup": 1, "thermal_floor_seconds": 0},
        baseline={"enabled": False},
        energy={"backend": install("wall_c")},
        output_dir=str(tmp_path / "results"),
    )
    breakdown = result.energy_breakdown
    assert breakdown is not None
    assert (breakdown.meter, breakdown.meter_version) == ("wall_c", "1.2")
    assert (breakdown.method, breakdown.scope) == ("power_integration", "machine")
    assert result.total_energy_j == pytest.approx(50.0 * result.total_inference_time_sec)
    assert result.energy_by_device_j == {"machine": result.total_energy_j}
    assert result.uncertainty is not None
    assert [part.name for part in result.uncertainty.budget] == ["resolution"]
    assert "everything that ran on the machine" in result.reproducibility_notes
    assert "whole machine" in result.summary()


def test_processes_on_their_own_gpus_count_the_machine_once() -> None:
    records = [make_record(index, gpu_id=index, energy_per_device_j={"machine": 100.0}) for index in (0, 1)]
    assert len(attribute_energy(records).counted) == 1


@pytest.mark.parametrize(
    ("bend", "said"),
    [
        (lambda energy: replace(energy, total_j=0.0), "0 J: its reading did not move over the whole window"),
        (lambda energy: replace(energy, total_j=-3.0), "-3 J: its counter went backwards"),
        (lambda energy: replace(energy, total_j=math.nan), "it gave nan J"),
        (lambda energy: replace(energy, total_j=None), "no figure, and no reason"),
        (lambda energy: replace(energy, method=None), "its method is None and must be one of hardware_counter"),
        (lambda energy: replace(energy, scope="rack"), "its scope is 'rack' and must be one of gpu"),
        (lambda energy: replace(energy, per_gpu_j={"GPU-0": -1.0}), "it gave -1.0 J for GPU-0"),
        (lambda energy: replace(energy, cpu_j=math.inf), "it gave inf J for cpu_j"),
        (lambda energy: replace(energy, total_j="500 J"), "its figures are not understood: TypeError"),
        (lambda energy: replace(energy, components=(0.5,)), "its figures are not understood: AttributeError"),
        (
            lambda energy: replace(energy, components=(RESOLUTION.model_copy(update={"half_width_j": -0.5}),)),
            "it states a half-width of -0.5 J",
        ),
        (lambda energy: replace(energy, end_s=energy.end_s + 1.0), "did not end now"),
        (lambda energy: replace(energy, start_s=energy.start_s - 1.0), "did not end now"),
        (lambda energy: 500.0, "it gave float, no EnergyMeasurement"),
        (lambda energy: 1 / 0, "closing its window failed: ZeroDivisionError"),
    ],
)
def test_what_cannot_be_believed_costs_the_figure_and_not_the_run(
    bend: Callable[[EnergyMeasurement], object], said: str
) -> None:
    energy = measured(bend)
    assert (energy.total_j, energy.duration_sec, energy.meter) == (None, 10.0, "wall")
    assert energy.notes[-1].code is WarningCode.ENERGY_UNAVAILABLE
    assert said in energy.notes[-1].message


def test_its_own_uncertainty_is_kept_and_the_users_stands_in_where_it_states_none() -> None:
    assert measured(lambda energy: energy).components == (RESOLUTION,)
    (assumed,) = measured(
        lambda energy: replace(energy, components=()), MeterOptions(power_gain_uncertainty_pct=2.0)
    ).components
    assert (assumed.kind, assumed.half_width_j) == ("sensor", pytest.approx(10.0))


def test_an_estimate_is_labelled_and_has_no_uncertainty() -> None:
    energy = measured(lambda energy: replace(energy, method="model_estimate", components=()))
    assert [note.code for note in energy.notes] == [WarningCode.ENERGY_IS_ESTIMATED]
    assert energy.components == ()


def sampler_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "llem-power-sampler"]


def test_gpus_are_sampled_beside_it_for_everything_but_power(install: Install) -> None:
    gpu = FakeGpu("GPU-0", readings={"temperature_c": 71.0, "throttle_reasons": SW_POWER_CAP})
    host = Host(open_driver=lambda: FakeNvml(gpu))
    options = MeterOptions(poll_interval_ms=10_000)
    meter = select_energy_backend(install("wall_t"), [gpu.uuid], options, host)
    energy = meter.stop_tracking(meter.start_tracking())
    assert energy.total_j == pytest.approx(50.0 * energy.duration_sec)
    assert (energy.gpu_window, energy.integral_j, energy.notes) == (None, None, ())
    assert energy.telemetry is not None
    assert set(map(math.isnan, energy.telemetry.column(gpu.uuid, "power_w"))) == {True}
    assert (has_samples(energy), energy.has_trace) == (True, False)  # a time series; no trace of joules
    assert not [call for call in gpu.calls if "power" in call and not call.endswith("power_limit_w")]
    throttled = throttle_info(energy)
    assert throttled is not None
    assert (throttled.power, throttled.max_temperature_c) == (True, 71.0)
    with pytest.raises(PartUnknownError, match="wall_t meter gives no power samples"):
        TracedWindow(energy, ())
    assert "sample" not in "".join(str(warning) for warning in window_warnings(energy))
    assert sampler_threads() == []


def test_gpus_that_do_not_answer_cost_the_samples_only(install: Install) -> None:
    def unknown() -> GpuDriver:
        raise DriverMissingError("boards of another make")

    meter = select_energy_backend(install("wall_u"), ["GPU-0"], host=Host(open_driver=unknown))
    energy = meter.stop_tracking(meter.start_tracking())
    assert (energy.total_j is not None, energy.telemetry) == (True, None)


@pytest.mark.parametrize("fails_at", ["opening", "closing"])
def test_no_sampler_is_left_behind_when_it_fails(fails_at: str) -> None:
    def interrupt(_: object) -> object:
        raise KeyboardInterrupt

    clock, gpu = VirtualClock(), FakeGpu("GPU-0")
    wall = Wall(clock, opens_at=interrupt) if fails_at == "opening" else Wall(clock, bend=interrupt)
    meter = metered(wall, gpus=find_gpus(["GPU-0"], FakeNvml(gpu)))
    with pytest.raises(KeyboardInterrupt):
        meter.stop_tracking(meter.start_tracking())
    assert sampler_threads() == []


def test_a_window_that_began_on_another_clock_is_refused() -> None:
    clock = VirtualClock()
    wall = Wall(clock, opens_at=lambda now_s: TrackingHandle(now_s - 5.0))
    with pytest.raises(EnergyError, match="a window that did not begin now"):
        metered(wall).start_tracking()


@pytest.mark.parametrize(
    ("source", "value", "said"),
    [
        ("import no_such_package", "", "wall_d_for_llem:Meter of wall-d-for-llem 1.2 cannot be imported: ModuleNotF"),
        ("", "", "cannot be imported: AttributeError"),
        ("raise type('PanicException', (BaseException,), {})('no GIL')", "", "cannot be imported: PanicException: no"),
        ("Meter = 3", "", "is no class or function that makes a meter, but int"),
        ("def Meter(devices, clock): raise OSError('no such port')", "", "could not be set up: OSError: no such port"),
        ("def Meter(devices, clock): return object()", "", "object has no name, is_available, start_tracking"),
        (METER + "Meter.available = False", "", "no reading now"),
        (METER + "def _gone(self): raise OSError('unplugged')\nMeter.is_available = _gone", "", "OSError: unplugged"),
    ],
)
def test_a_package_that_does_not_do_its_part_is_told_before_the_run(
    install: Install, monkeypatch: pytest.MonkeyPatch, source: str, value: str, said: str
) -> None:
    monkeypatch.delitem(sys.modules, "third_party_meter", raising=False)
    name = install("wall_d", source, package="wall-d-for-llem", value=value)
    with pytest.raises(PreFlightError) as caught:
        run_experiment(model="builtin/tiny-llama", n=1, pytorch={"device": "cpu"}, energy={"backend": name})
    assert "energy.backend: wall_d does not work here" in str(caught.value)
    assert said in str(caught.value)
    monkeypatch.delitem(sys.modules, "third_party_meter", raising=False)


def test_the_names_that_cannot_be_taken_are_those_of_our_meters() -> None:
    assert set(RESERVED) == {"auto", *GPU_PRIORITY, *CPU_PRIORITY}


def test_two_packages_of_one_name_are_both_named(install: Install) -> None:
    install("wall_e", package="first-meter")
    install("wall_e", package="second-meter")
    with pytest.raises(EnergyError, match=r"first-meter 1\.2 and second-meter 1\.2 both register"):
        select_energy_backend("wall_e", ["cpu"])


def test_a_name_of_ours_cannot_be_taken_and_llem_config_says_so(install: Install, tmp_path: Path) -> None:
    install("rapl", package="my-rapl")
    install("wall_f")
    with pytest.raises(EnergyError, match="no RAPL counters"):
        select_energy_backend("rapl", ["cpu"], host=Host(open_driver=no_driver, root=tmp_path / "bare"))
    told = {
        meter.name: (meter.works, meter.detail)
        for meter in describe_energy_backends((), MeterOptions(), Host(open_driver=no_driver, root=tmp_path / "bare"))
    }
    assert told["wall_f"] == (True, "version 1.2 answers")
    assert told["rapl (my-rapl 1.2)"][0] is False
    assert "rename it" in told["rapl (my-rapl 1.2)"][1]


def test_the_dry_run_names_it_and_its_reading(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    llem = CommandLine(tmp_path / "work", monkeypatch, capfd)
    name = install("wall_g")
    (tmp_path / "work" / "x.yaml").write_text(f"model: builtin/tiny-llama\nenergy: {{backend: {name}}}\n")
    assert "wall_g: version 1.2 answers" in llem("run", "x.yaml", "--device", "cpu", "--dry-run").out


def test_a_meter_that_keeps_its_promises_passes_the_suite() -> None:
    clock = VirtualClock()
    assert check_meter(lambda devices, given: Wall(clock), clock=clock) == []


def test_our_own_meters_pass_it(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / "powercap")
    package = tree.zone("intel-rapl:0", "package-0")

    class Working(SystemClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            tree.set(package, 50.0 * self.now() % 262_143.0)

    clock = Working()
    tree.set(package, 50.0 * clock.now() % 262_143.0)
    options = MeterOptions()
    failures = check_meter(
        lambda devices, given: Meter(RaplStrategy(given, options, tree.root), given, options),
        clock=clock,
        window_s=0.4,
    )
    assert failures == []


@dataclass
class Forever(Wall):
    """Tells all the joules since it was made."""

    made_s: float = field(default=0.0)

    def stop_tracking(self, handle: TrackingHandle) -> EnergyMeasurement:
        energy = super().stop_tracking(handle)
        return replace(energy, total_j=50.0 * (energy.end_s - self.made_s))


def printing(energy: EnergyMeasurement) -> EnergyMeasurement:
    print("reading")
    return energy


@pytest.mark.parametrize(
    ("check", "make"),
    [
        ("available", lambda clock: Wall(clock, available=False)),
        ("protocol", lambda clock: Wall(clock, name=" ")),
        ("protocol", lambda clock: object()),
        ("setup", lambda clock: 1 / 0),
        ("long window", lambda clock: Wall(clock, lambda e: 1 / 0 if e.duration_sec > 1.5 else e)),
        ("clock", lambda clock: Wall(clock, opens_at=lambda now_s: TrackingHandle(now_s - 1.0))),
        ("figure", lambda clock: Wall(clock, lambda e: replace(e, total_j=-1.0))),
        ("joules", lambda clock: Wall(clock, lambda e: replace(e, total_j=None))),
        ("uncertainty", lambda clock: Wall(clock, lambda e: replace(e, components=()))),
        ("devices", lambda clock: Wall(clock, lambda e: replace(e, per_gpu_j={"GPU-0": 1.0}))),
        ("window", lambda clock: Forever(clock)),
        ("silence", lambda clock: Wall(clock, printing)),
    ],
)
def test_each_broken_promise_is_found(check: str, make: Callable[[VirtualClock], object]) -> None:
    clock = VirtualClock()
    failures = check_meter(lambda devices, given: make(clock), clock=clock)  # type: ignore[arg-type,return-value]
    assert check in {failure.check for failure in failures}


def test_a_meter_that_states_no_uncertainty_is_told_so_and_nothing_else() -> None:
    clock = VirtualClock()
    failures = check_meter(lambda devices, given: ConstantMeter(clock, devices=("cpu",)), clock=clock)
    assert {failure.check for failure in failures} == {"uncertainty"}


def test_the_names_of_the_config_do_not_change_its_hash() -> None:
    plain = ExperimentConfig(model="m")
    assert compute_measurement_config_hash(plain) == compute_measurement_config_hash(
        ExperimentConfig.model_validate({"model": "m", "energy": {"backend": "auto"}})
    )
