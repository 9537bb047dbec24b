from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_fakes import PowercapTree
from fake_nvml import FakeGpu, FakeNvml
from fakes import VirtualClock
from llenergymeasure.core.clock import Clock, SystemClock
from llenergymeasure.core.energy.gpu_energy import recompute_energy, write_trace
from llenergymeasure.core.energy.integrate import energy_between
from llenergymeasure.core.energy.meter import Meter
from llenergymeasure.core.energy.powercap import RaplDomain, find_domains
from llenergymeasure.core.energy.rapl import RaplReader, RaplStrategy
from llenergymeasure.core.energy.sampler import PowerSampler
from llenergymeasure.core.energy.strategies import CounterStrategy
from llenergymeasure.core.energy.types import EnergyMeasurement, MeterOptions
from llenergymeasure.core.gpu.driver import find_gpus
from llenergymeasure.domain.energy import comparative_half_width
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.exceptions import EnergyError

OPTIONS = MeterOptions(poll_interval_ms=20, power_gain_uncertainty_pct=5.0)


def rapl_meter(tree: PowercapTree, clock: Clock | None = None, options: MeterOptions = OPTIONS) -> Meter:
    clock = clock or SystemClock()
    return Meter(RaplStrategy(clock, options, tree.root), clock, options)


@pytest.fixture
def tree(tmp_path: Path) -> PowercapTree:
    return PowercapTree(tmp_path / "powercap")


def test_packages_and_memory_are_found_each_once(tree: PowercapTree) -> None:
    for package in (0, 1):
        tree.zone(f"intel-rapl:{package}", f"package-{package}")
        tree.zone(f"intel-rapl:{package}:0", "core")
        tree.zone(f"intel-rapl:{package}:1", "dram")
    tree.zone("intel-rapl:2", "psys")
    tree.zone("intel-rapl-mmio:0", "package-0")  # the same package through another driver
    found = find_domains(tree.root)
    assert sorted((d.name, d.kind) for d in found) == [
        ("package-0", "package"),
        ("package-0 dram", "dram"),
        ("package-1", "package"),
        ("package-1 dram", "dram"),
    ]
    assert all("mmio" not in str(domain.path) for domain in found)


def test_the_flat_view_of_the_kernel_counts_no_domain_twice(tree: PowercapTree) -> None:
    package = tree.zone("intel-rapl:0", "package-0")
    dram = tree.zone("intel-rapl:0:1", "dram")
    (tree.root / "intel-rapl:0:1").symlink_to(dram)
    assert package.exists()
    assert len(find_domains(tree.root)) == 2


def test_a_machine_without_packages_says_so(tree: PowercapTree) -> None:
    tree.zone("intel-rapl:0", "psys")
    with pytest.raises(EnergyError, match="no RAPL counters"):
        find_domains(tree.root)


def test_a_counter_that_this_user_may_not_read_is_told_with_the_remedy(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0")
    (zone / "energy_uj").unlink()
    (zone / "energy_uj").mkdir()  # unreadable for root too, who runs these tests in a container
    backend = rapl_meter(tree)
    assert not backend.is_available()
    with pytest.raises(EnergyError, match="energy_uj cannot be read"):
        backend.prove()


def test_counters_that_stand_still_prove_nothing(tree: PowercapTree) -> None:
    tree.zone("intel-rapl:0", "package-0", joules=12.0)
    with pytest.raises(EnergyError, match="stand still"):
        rapl_meter(tree).prove()


def test_a_counter_file_that_holds_no_number_is_an_error(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0")
    (zone / "energy_uj").write_text("")
    with pytest.raises(EnergyError, match="a number is expected"):
        rapl_meter(tree).start_tracking()


def test_a_window_adds_packages_and_memory_names_its_scope_and_comes_again_from_its_trace(tree: PowercapTree) -> None:
    first = tree.zone("intel-rapl:0", "package-0", joules=100.0)
    second = tree.zone("intel-rapl:1", "package-1", joules=50.0)
    dram = tree.zone("intel-rapl:1:0", "dram", joules=7.0)
    backend = rapl_meter(tree)
    handle = backend.start_tracking()
    tree.set(first, 130.0)
    tree.set(second, 62.0)
    tree.set(dram, 9.5)
    energy = backend.stop_tracking(handle)
    assert energy.cpu_j == pytest.approx(42.0)
    assert energy.dram_j == pytest.approx(2.5)
    assert energy.total_j == pytest.approx(44.5)
    assert (energy.method, energy.scope) == ("hardware_counter", "cpu_package_and_dram")
    assert [part.kind for part in energy.components] == ["gain", "counter_resolution"]
    assert energy.components[0].half_width_j == pytest.approx(0.05 * 44.5)
    again = recompute_energy(write_trace(energy, tree.root / "trace.parquet"))
    assert replace(again, telemetry=None) == replace(energy, telemetry=None)


def test_memory_that_is_not_counted_is_not_claimed(tree: PowercapTree) -> None:
    package = tree.zone("intel-rapl:0", "package-0")
    tree.zone("intel-rapl:0:0", "dram")  # there, and always 0
    backend = rapl_meter(tree)
    handle = backend.start_tracking()
    tree.set(package, 10.0)
    energy = backend.stop_tracking(handle)
    assert (energy.dram_j, energy.scope) == (None, "cpu_package")


def test_counters_that_stood_still_give_none_and_a_reason(tree: PowercapTree) -> None:
    tree.zone("intel-rapl:0", "package-0", joules=5.0)
    backend = rapl_meter(tree)
    energy = backend.stop_tracking(backend.start_tracking())
    assert energy.total_j is None
    assert energy.notes[0].code is WarningCode.ENERGY_UNAVAILABLE
    assert "stood still" in energy.notes[0].message


def test_a_counter_that_vanished_for_a_while_may_have_wrapped_unseen(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0")
    clock = VirtualClock()
    strategy = RaplStrategy(clock, OPTIONS, tree.root)
    (reader,) = strategy.readers()
    before, start_s = strategy.before(), clock.now()
    (zone / "energy_uj").unlink()
    reader.read()
    clock.sleep(0.1)
    tree.set(zone, 40.0)
    energy = strategy.measurement(start_s, clock.now(), strategy.after(before), None)
    assert energy.total_j is None
    assert energy.notes


def test_the_power_of_the_packages_is_sampled_along(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0")
    clock = SystemClock()
    backend = rapl_meter(tree, clock)
    handle = backend.start_tracking()
    began_s = clock.now()
    for _ in range(10):
        tree.set(zone, 100.0 * (clock.now() - began_s))
        clock.sleep(0.02)
    energy = backend.stop_tracking(handle)
    assert energy.telemetry is not None
    times_s, _ = energy.telemetry.power("cpu")
    assert len(times_s) >= 5
    assert times_s[0] <= energy.start_s < energy.end_s <= times_s[-1]
    assert energy_between(energy, energy.start_s, began_s + 0.1).total_j is not None
    assert energy.telemetry.power_sources("cpu") == {"rapl"}
    assert not [t for t in threading.enumerate() if t.name == "llem-power-sampler"]


def dies(tree: PowercapTree, count: int, joules: float = 0.0) -> list[Path]:
    return [tree.zone(f"intel-rapl:{i}", f"package-0-die-{i}", joules=joules) for i in range(count)]


@pytest.mark.parametrize("count", [2, 12])
@pytest.mark.parametrize("joules", [0.0, 262_140.0], ids=["from 0", "over a wrap"])
def test_dies_that_show_the_counter_of_their_package_count_once(tree: PowercapTree, count: int, joules: float) -> None:
    zones = dies(tree, count, joules)
    drams = [tree.zone(f"intel-rapl:{i}:0", "dram", joules=7.0) for i in range(count)]
    # No reading by the sampler's thread while the counters are set one after the other.
    backend = rapl_meter(tree, options=replace(OPTIONS, poll_interval_ms=60_000))
    handle = backend.start_tracking()
    for step in (45.0, 90.0):
        for zone in zones:
            tree.set(zone, (joules + step) % 262_143.0)
        for dram in drams:
            tree.set(dram, 7.0 + step / 10)
        backend.stop_tracking(backend.start_tracking())
    energy = backend.stop_tracking(handle)
    assert (energy.cpu_j, energy.dram_j) == (pytest.approx(90.0), pytest.approx(9.0))
    assert energy.total_j == pytest.approx(99.0)
    assert energy.notes == ()


def test_a_mirrored_counter_that_moves_all_the_time_counts_once(tree: PowercapTree) -> None:
    """Between the readings of one die and the next it has moved on: 150 W, and 50 µs for each reading."""
    dies(tree, 12)
    clock = VirtualClock()

    class Moving(RaplDomain):
        def read_j(self) -> float:
            clock.sleep(50e-6)
            return 150.0 * clock.now()

    found = find_domains(tree.root)
    reader = RaplReader([Moving(*(getattr(one, f.name) for f in fields(one))) for one in found], clock)
    first, began_s = reader.mark(), clock.now()
    clock.sleep(2.0)
    flowed, ended_s = reader.mark().since(first), clock.now()
    assert flowed.package_j == pytest.approx(150.0 * (ended_s - began_s), rel=0.01)


@pytest.mark.parametrize("names", [("package-0-die-0", "package-0-die-1"), ("package-0", "package-1")])
@pytest.mark.parametrize(("first_j", "second_j"), [(90.0, 60.0), (60.0, 90.0), (6.0, 6.5)])
@pytest.mark.parametrize("before_j", [0.0, 500.0], ids=["from the same reading", "from another"])
def test_dies_with_counters_of_their_own_are_added(
    tree: PowercapTree, names: tuple[str, str], first_j: float, second_j: float, before_j: float
) -> None:
    first, second = (tree.zone(f"intel-rapl:{i}", name, joules=i * before_j) for i, name in enumerate(names))
    backend = rapl_meter(tree)
    handle = backend.start_tracking()
    tree.set(first, first_j)
    tree.set(second, before_j + second_j)
    assert backend.stop_tracking(handle).total_j == pytest.approx(first_j + second_j)


def test_counters_with_unlike_ranges_are_not_one(tree: PowercapTree) -> None:
    zones = [tree.zone(f"intel-rapl:{i}", f"package-{i}", range_j=262_143.0 + i) for i in (0, 1)]
    backend = rapl_meter(tree)
    handle = backend.start_tracking()
    for zone in zones:
        tree.set(zone, 50.0)
    assert backend.stop_tracking(handle).total_j == pytest.approx(100.0)


def test_a_package_that_counts_nothing_beside_one_that_does_is_told(tree: PowercapTree) -> None:
    tree.zone("intel-rapl:0", "package-0", joules=3.0)
    moving = tree.zone("intel-rapl:1", "package-1")
    backend = rapl_meter(tree)
    handle = backend.start_tracking()
    tree.set(moving, 20.0)
    energy = backend.stop_tracking(handle)
    assert energy.total_j == pytest.approx(20.0)
    (note,) = energy.notes
    assert "package-0 stood still" in note.message


BROKEN = {
    "jumped back": (100.0, 10.0, {}),
    "reads 0": (90.0, 0.0, {}),
    "jumped ahead": (0.0, 5_000.0, {}),
    "no range, back": (100.0, 10.0, {"range_j": 0.0}),
    "above the package's limit": (0.0, 150.0, {"limit_w": 125.0}),
}


def broken_zone(tree: PowercapTree, before_j: float, range_j: float = 262_143.0, limit_w: float = 0.0) -> Path:
    zone = tree.zone("intel-rapl:0", "package-0", joules=before_j, range_j=range_j)
    if limit_w:
        (zone / "constraint_0_max_power_uw").write_text(f"{limit_w * 1e6:.0f}\n")
        (zone / "constraint_1_power_limit_uw").write_text("\n")
    return zone


@pytest.mark.parametrize("fault", BROKEN)
def test_a_step_that_no_package_can_draw_gives_none_and_a_reason(tree: PowercapTree, fault: str) -> None:
    before_j, after_j, described = BROKEN[fault]
    zone = broken_zone(tree, before_j, **described)
    backend = rapl_meter(tree, VirtualClock())
    handle = backend.start_tracking()
    tree.set(zone, after_j)
    energy = backend.stop_tracking(handle)
    assert (energy.total_j, energy.cpu_j) == (None, None)
    (note,) = energy.notes
    assert note.code is WarningCode.ENERGY_UNAVAILABLE
    assert f"package-0 went from {before_j:.3f} J to {after_j:.3f} J" in note.message


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_counter_beside_gpus_costs_only_its_own_joules(tree: PowercapTree, fault: str) -> None:
    before_j, after_j, described = BROKEN[fault]
    zone = broken_zone(tree, before_j, **described)
    clock = VirtualClock()
    (gpu,) = find_gpus(["GPU-0"], FakeNvml(FakeGpu("GPU-0")))
    meter = Meter(CounterStrategy([gpu], clock, OPTIONS), clock, OPTIONS, tree.root)
    handle = meter.start_tracking()
    tree.set(zone, after_j)
    clock.sleep(0.1)
    energy = meter.stop_tracking(handle)
    assert energy.total_j == pytest.approx(100.0 * energy.duration_sec)
    assert (energy.cpu_j, energy.dram_j) == (None, None)
    # A busy machine that reads the board late adds notes about the board.
    about_the_host = [note for note in energy.notes if "GPU-0" not in note.message and "RAPL" in note.message]
    assert [note.code for note in about_the_host] == [WarningCode.TELEMETRY_UNAVAILABLE]
    assert "CPU and memory energy are missing" in about_the_host[0].message


def test_a_counter_that_breaks_before_the_window_costs_no_window_of_gpus(tree: PowercapTree) -> None:
    (tree.zone("intel-rapl:0", "package-0") / "energy_uj").write_text("")
    clock = SystemClock()
    (gpu,) = find_gpus(["GPU-0"], FakeNvml(FakeGpu("GPU-0")))
    meter = Meter(CounterStrategy([gpu], clock, OPTIONS), clock, OPTIONS, tree.root)
    handle = meter.start_tracking()
    clock.sleep(0.1)
    energy = meter.stop_tracking(handle)
    assert (energy.total_j is not None, energy.cpu_j) == (True, None)
    assert "a number is expected" in energy.notes[-1].message


def test_mirrored_dies_beside_gpus_count_once(tree: PowercapTree) -> None:
    zones, clock = dies(tree, 2), SystemClock()
    (gpu,) = find_gpus(["GPU-0"], FakeNvml(FakeGpu("GPU-0")))
    meter = Meter(CounterStrategy([gpu], clock, OPTIONS), clock, OPTIONS, tree.root)
    handle = meter.start_tracking()
    for zone in zones:
        tree.set(zone, 12.0)
    clock.sleep(0.1)
    assert meter.stop_tracking(handle).cpu_j == pytest.approx(12.0)


def test_a_counter_without_a_range_counts_as_long_as_it_grows(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0", joules=5.0, range_j=0.0)
    backend = rapl_meter(tree)
    handle = backend.start_tracking()
    tree.set(zone, 25.0)
    assert backend.stop_tracking(handle).total_j == pytest.approx(20.0)


def window_on(tree: PowercapTree, zone: Path, joules: Sequence[float], step_s: float) -> EnergyMeasurement:
    """A window in which the counter is read every `step_s` and shows those totals."""
    clock = VirtualClock()
    strategy = RaplStrategy(clock, OPTIONS, tree.root)
    (reader,) = strategy.readers()
    before, start_s = strategy.before(), clock.now()
    for total_j in joules:
        clock.sleep(step_s)
        tree.set(zone, total_j)
        reader.read()
    return strategy.measurement(start_s, clock.now(), strategy.after(before), None)


def test_a_counter_that_is_late_is_told_and_is_uncertain_by_what_it_may_lack(tree: PowercapTree) -> None:
    """100 W for 0.7 s, of which the last 0.4 s are not in the counter yet."""
    zone = tree.zone("intel-rapl:0", "package-0")
    late = window_on(tree, zone, [10.0, 20.0, 30.0, 30.0, 30.0, 30.0, 30.0], 0.1)
    assert late.total_j == pytest.approx(30.0)
    assert [note.code for note in late.notes] == [WarningCode.TELEMETRY_UNAVAILABLE]
    assert "stood still for 0.4 s" in late.notes[0].message
    assert comparative_half_width(late.components) >= 39.5


def test_a_counter_that_moves_at_every_reading_is_not_late(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0")
    energy = window_on(tree, zone, [10.0 * k for k in range(1, 8)], 0.1)
    assert energy.notes == ()
    assert comparative_half_width(energy.components) == pytest.approx(2 * 0.001 * 70.0 / 0.7)


def test_a_counter_that_may_have_wrapped_between_two_readings_gives_none(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0", range_j=100.0)  # at 2,000 W within 50 ms
    energy = window_on(tree, zone, [10.0], 0.06)
    assert energy.total_j is None
    assert "may have wrapped unseen" in energy.notes[0].message


class ScriptedDomain(RaplDomain):
    """A counter that shows a list of values one after the other."""

    values: list[float]

    def read_j(self) -> float:
        return self.values.pop(0)


@given(st.lists(st.floats(0.0, 90.0), min_size=1, max_size=30))
def test_every_wrap_is_counted_when_readings_are_closer_than_one_range(flows_j: list[float]) -> None:
    totals = [0.0]
    for flow in flows_j:
        totals.append(totals[-1] + flow)
    domain = ScriptedDomain("package-0", "package", Path(), range_j=100.0)
    object.__setattr__(domain, "values", [total % 100.0 for total in totals])
    reader = RaplReader([domain], VirtualClock())
    for _ in flows_j[:-1]:
        reader.read()
    assert reader.mark().package_j == pytest.approx(sum(flows_j), abs=1e-6)


def test_small_ranges_are_read_more_often() -> None:
    """A counter that wraps after 100 J at 2,000 W does so in 50 ms."""
    domain = ScriptedDomain("package-0", "package", Path(), range_j=100.0)
    object.__setattr__(domain, "values", [0.0])
    clock = VirtualClock()
    sampler = PowerSampler([RaplReader([domain], clock)], interval_s=1.0, clock=clock)
    assert sampler._interval_s == pytest.approx(0.0125)
