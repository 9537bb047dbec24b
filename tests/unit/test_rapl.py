from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_fakes import PowercapTree
from fakes import VirtualClock
from llenergymeasure.core.clock import SystemClock
from llenergymeasure.core.energy.rapl import RaplDomain, RaplReader, RaplStrategy, find_domains
from llenergymeasure.core.energy.sampler import PowerSampler
from llenergymeasure.core.energy.select import Meter
from llenergymeasure.core.energy.types import MeterOptions
from llenergymeasure.domain.warnings import WarningCode
from llenergymeasure.exceptions import EnergyError

OPTIONS = MeterOptions(poll_interval_ms=20, power_gain_uncertainty_pct=5.0)


def rapl_meter(tree: PowercapTree, clock: SystemClock | None = None) -> Meter:
    clock = clock or SystemClock()
    return Meter(RaplStrategy(clock, OPTIONS, tree.root), clock, OPTIONS)


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


def test_a_window_adds_packages_and_memory_and_names_its_scope(tree: PowercapTree) -> None:
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
    clock = SystemClock()
    backend = rapl_meter(tree, clock)
    handle = backend.start_tracking()
    (zone / "energy_uj").unlink()
    clock.sleep(0.1)
    tree.set(zone, 40.0)
    energy = backend.stop_tracking(handle)
    assert energy.total_j is None
    assert energy.notes


def test_the_power_of_the_packages_is_sampled_along(tree: PowercapTree) -> None:
    zone = tree.zone("intel-rapl:0", "package-0")
    clock = SystemClock()
    backend = rapl_meter(tree, clock)
    handle = backend.start_tracking()
    for _ in range(10):
        tree.set(zone, 100.0 * clock.now())
        clock.sleep(0.02)
    energy = backend.stop_tracking(handle)
    assert energy.telemetry is not None
    times_s, _ = energy.telemetry.power("cpu")
    assert len(times_s) >= 5
    assert energy.telemetry.power_sources("cpu") == {"rapl"}
    assert not [t for t in threading.enumerate() if t.name == "llem-power-sampler"]


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
