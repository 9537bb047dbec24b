from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

import pytest

from energy_fakes import PowercapTree
from fake_nvml import FakeGpu, FakeNvml
from fakes import VirtualClock
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.select import describe_energy_backends, select_energy_backend
from llenergymeasure.core.energy.types import EnergyBackend, MeterOptions
from llenergymeasure.core.gpu.driver import (
    CPU_DEVICE,
    DriverMissingError,
    GpuDriver,
    GpuDriverError,
    PermissionDeniedError,
)
from llenergymeasure.core.host.host import Host
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.exceptions import EnergyError

OPTIONS = MeterOptions(poll_interval_ms=20)


class WorkingClock(SystemClock):
    """A machine whose processor draws 50 W while somebody sleeps."""

    def __init__(self, tree: PowercapTree | None = None) -> None:
        self._tree = tree
        self._package = tree.zone("intel-rapl:0", "package-0") if tree else None
        self._joules = 0.0

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        self._joules += 50.0 * seconds
        if self._tree is not None and self._package is not None:
            self._tree.set(self._package, self._joules)


def no_driver() -> GpuDriver:
    raise DriverMissingError("reading NVML itself failed: NVML Shared Library Not Found")


def host(
    tmp_path: Path,
    nvml: FakeNvml | None = None,
    opener: Callable[[], GpuDriver] | None = None,
    clock: Clock | None = None,
) -> Host:
    open_driver = opener or (no_driver if nvml is None else lambda: nvml)
    return Host(open_driver=open_driver, root=tmp_path / "p", clock=clock or SystemClock())


def gpu(**readings: object) -> FakeNvml:
    return FakeNvml(FakeGpu("GPU-0", readings=readings))


def test_nvml_by_name_measures_the_gpu_it_was_given(tmp_path: Path) -> None:
    clock = SystemClock()
    meter = select_energy_backend("nvml", ["GPU-0"], OPTIONS, host(tmp_path, gpu(), clock=clock))
    assert isinstance(meter, EnergyBackend)
    assert meter.name == "nvml"
    handle = meter.start_tracking()
    clock.sleep(0.1)
    energy = meter.stop_tracking(handle)
    assert energy.total_j == pytest.approx(100.0 * energy.duration_sec)
    assert energy.method == "power_integration"
    assert energy.cpu_j is None


def test_on_the_cpu_rapl_comes_first(tmp_path: Path) -> None:
    clock = WorkingClock(PowercapTree(tmp_path / "p/sys/class/powercap"))
    meter = select_energy_backend("auto", [CPU_DEVICE], OPTIONS, host(tmp_path, clock=clock))
    assert meter.name == "rapl"


def test_cpu_energy_is_reported_beside_gpu_energy_and_never_in_it(tmp_path: Path) -> None:
    clock = WorkingClock(PowercapTree(tmp_path / "p/sys/class/powercap"))
    meter = select_energy_backend("nvml", ["GPU-0"], OPTIONS, host(tmp_path, gpu(), clock=clock))
    handle = meter.start_tracking()
    clock.sleep(0.2)
    energy = meter.stop_tracking(handle)
    assert energy.total_j == pytest.approx(100.0 * energy.duration_sec)
    assert energy.cpu_j == pytest.approx(10.0)
    assert energy.dram_j is None
    assert energy.scope == "gpu"


def test_host_energy_that_fails_costs_a_note_and_not_the_measurement(tmp_path: Path) -> None:
    tree = PowercapTree(tmp_path / "p/sys/class/powercap")
    clock = WorkingClock(tree)
    meter = select_energy_backend("nvml", ["GPU-0"], OPTIONS, host(tmp_path, gpu(), clock=clock))
    handle = meter.start_tracking()
    (tree.root / "intel-rapl:0" / "energy_uj").write_text("gone")
    energy = meter.stop_tracking(handle)
    assert energy.total_j is not None
    assert energy.cpu_j is None
    assert energy.notes[-1].code is WarningCode.TELEMETRY_UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "devices", "message"),
    [
        ("nvml", [CPU_DEVICE], "nvml measures GPUs, and this run uses the CPU. Use one of rapl, codecarbon"),
        ("zeus", [CPU_DEVICE], "zeus measures GPUs"),
        ("rapl", ["GPU-0"], "rapl measures the CPU, and this run uses GPUs"),
        ("nvml", ["GPU-0"], "NVML Shared Library Not Found"),
        ("rapl", [CPU_DEVICE], "no RAPL counters"),
    ],
)
def test_a_meter_asked_for_by_name_is_refused_with_the_reason(
    name: str, devices: list[str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(EnergyError, match=message):
        select_energy_backend(name, devices, OPTIONS, host(tmp_path, clock=SystemClock()))  # type: ignore[arg-type]


def test_a_gpu_that_tells_neither_power_nor_energy_is_refused(tmp_path: Path) -> None:
    denied = PermissionDeniedError("Insufficient Permissions")
    nvml = gpu(power_instant=denied, power_usage_w=denied)
    with pytest.raises(EnergyError, match="Insufficient Permissions"):
        select_energy_backend("nvml", ["GPU-0"], OPTIONS, host(tmp_path, nvml, clock=SystemClock()))


def test_the_meter_that_measures_nothing_says_why() -> None:
    meter = NoEnergyBackend(SystemClock(), reason="nothing works")
    energy = meter.stop_tracking(meter.start_tracking())
    assert energy.total_j is None
    assert str(energy.notes[0]) == "energy_unavailable: nothing works"
    assert not meter.is_available()


def test_energy_that_was_switched_off_raises_no_doubt() -> None:
    meter = NoEnergyBackend(SystemClock())
    energy = meter.stop_tracking(meter.start_tracking())
    assert (energy.total_j, energy.notes) == (None, ())


@pytest.mark.usefixtures("without_meter_packages")
class TestWithoutOptionalPackages:
    def test_auto_falls_to_nvml(self, tmp_path: Path) -> None:
        meter = select_energy_backend("auto", ["GPU-0"], OPTIONS, host(tmp_path, gpu(), clock=SystemClock()))
        assert meter.name == "nvml"

    @pytest.mark.parametrize("devices", [["GPU-0"], [CPU_DEVICE]])
    def test_auto_without_any_meter_measures_nothing_and_names_every_reason(
        self, devices: list[str], tmp_path: Path
    ) -> None:
        meter = select_energy_backend("auto", devices, OPTIONS, host(tmp_path, clock=SystemClock()))
        assert isinstance(meter, NoEnergyBackend)
        (note,) = meter.stop_tracking(meter.start_tracking()).notes
        assert note.code is WarningCode.ENERGY_UNAVAILABLE
        names = ("zeus", "nvml", "codecarbon") if devices != [CPU_DEVICE] else ("rapl", "codecarbon")
        assert all(f"{name}: " in note.message for name in names)

    @pytest.mark.parametrize(("name", "devices"), [("zeus", ["GPU-0"]), ("codecarbon", [CPU_DEVICE])])
    def test_a_missing_package_is_named_with_the_command_that_installs_it(
        self, name: str, devices: list[str], tmp_path: Path
    ) -> None:
        with pytest.raises(EnergyError, match=rf'pip install "llenergymeasure\[{name}\]"'):
            select_energy_backend(
                name,  # type: ignore[arg-type]
                devices,
                OPTIONS,
                host(tmp_path, gpu()),
            )

    def test_each_meter_is_described_by_its_reading_or_by_the_reason_against_it(self, tmp_path: Path) -> None:
        described = describe_energy_backends(["GPU-0"], OPTIONS, host(tmp_path, gpu(), clock=SystemClock()))
        by_name = {reading.name: reading for reading in described}
        assert list(by_name) == ["zeus", "nvml", "codecarbon", "rapl"]
        assert by_name["nvml"].works
        assert by_name["nvml"].detail == "GPU 0 draws 100.0 W now"
        assert not by_name["zeus"].works
        assert "pip install" in by_name["zeus"].detail


@pytest.mark.parametrize("moves_per_s", [10.0, 2.0, 0.0])
def test_without_a_power_reading_a_counter_proves_itself_by_moving(moves_per_s: float, tmp_path: Path) -> None:
    clock, mute = VirtualClock(), GpuDriverError("Unknown Error")

    def counted_j() -> float:
        return 100.0 + int(moves_per_s * clock.now())

    board = gpu(power_instant=mute, power_usage_w=mute, total_energy_j=counted_j)
    machine = host(tmp_path, board, clock=clock)
    if moves_per_s:
        assert select_energy_backend("nvml", ["GPU-0"], OPTIONS, machine).name == "nvml"
    else:
        with pytest.raises(EnergyError, match="tells no power, and its energy counter stands still at 100 J"):
            select_energy_backend("nvml", ["GPU-0"], OPTIONS, machine)


def test_a_meter_whose_package_panics_while_it_is_imported_leaves_the_choice_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zeus").mkdir()
    (tmp_path / "zeus" / "__init__.py").touch()
    (tmp_path / "zeus" / "monitor.py").write_text("class Panic(BaseException): ...\nraise Panic('no GIL')\n")
    for module in ("zeus", "zeus.monitor"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    machine = host(tmp_path, gpu(total_energy_j=1.0), clock=VirtualClock())
    assert select_energy_backend("auto", ["GPU-0"], OPTIONS, machine).name == "nvml"
    with pytest.raises(EnergyError, match=r"zeus\.monitor is installed and cannot be imported: Panic: no GIL"):
        select_energy_backend("zeus", ["GPU-0"], OPTIONS, machine)
    monkeypatch.delitem(sys.modules, "zeus")


class WithoutMeterPackages:
    """A finder of modules that finds what another one does, but neither Zeus nor CodeCarbon."""

    def __init__(self, finder: MetaPathFinder) -> None:
        self._finder = finder

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> object:
        return None if name in ("zeus", "codecarbon") else self._finder.find_spec(name, path, target)


@pytest.fixture
def without_meter_packages() -> Iterator[None]:
    """An interpreter in which Zeus and CodeCarbon are not installed."""
    finders = list(sys.meta_path)
    imported = {name: sys.modules.pop(name) for name in ("zeus", "codecarbon") if name in sys.modules}
    sys.meta_path[:] = [WithoutMeterPackages(finder) for finder in finders]  # type: ignore[misc, arg-type]
    yield
    sys.meta_path[:] = finders
    sys.modules.update(imported)
