"""RAPL counters of this machine, as Linux shows them in its powercap tree.

What is counted: each package once, whatever driver shows it (`intel-rapl:0` and `intel-rapl-mmio:0` may be the same
package), and its `dram` domain. `psys` (the whole platform) and the parts of a package are left out: they would count
the same joules twice.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from llenergymeasure.exceptions import EnergyError

MAX_PACKAGE_POWER_W: Final = 2000.0
"""More than any package draws; with a counter's range it says how soon the counter can wrap."""

LATE_S: Final = 0.1
"""By how much the time between two readings may be longer than it was found to be: a busy machine reads late."""

ABSURD_FACTOR: Final = 3.0
"""A step above this many times what the processor itself calls its limit is none: bursts reach about twice that."""

Kind = Literal["package", "dram"]


@dataclass(frozen=True, slots=True)
class RaplDomain:
    """One counter of the powercap tree, e.g. `package-0` or `package-0 dram`.

    Args:
        range_j: At which it wraps; `None`: not told.
        max_power_w: More than it can count in a second.
    """

    name: str
    kind: Kind
    path: Path
    range_j: float | None
    max_power_w: float = MAX_PACKAGE_POWER_W

    def read_j(self) -> float:
        """The counter, in joules; an `EnergyError` where it cannot be read: on most systems only root may."""
        return _read_number(self.path / "energy_uj") / 1e6

    def step_j(self, earlier_j: float, later_j: float) -> float:
        """What it counted between two readings, a wrap included; infinite where it can only have been reset."""
        step_j = later_j - earlier_j
        if step_j < 0:
            step_j += -math.inf if self.range_j is None else self.range_j
        return step_j if step_j >= 0 else math.inf

    def believable_step_j(self, earlier_j: float, later_j: float, seconds: float) -> float:
        """The same; an `EnergyError` where nothing draws so much in so many seconds, or a wrap may have gone unseen."""
        step_j = self.step_j(earlier_j, later_j)
        if self.range_j is not None and seconds > self.range_j / self.max_power_w:
            raise EnergyError(
                f"the RAPL counter {self.name} was not read for {seconds:.3g} s, in which it may have wrapped unseen "
                f"(it does after {self.range_j:.0f} J)"
            )
        if step_j > self.max_power_w * (seconds + LATE_S):
            raise EnergyError(
                f"the RAPL counter {self.name} went from {earlier_j:.3f} J to {later_j:.3f} J in {seconds:.3f} s, more "
                f"than {self.max_power_w:.0f} W explain: it was reset or jumped"
            )
        return step_j


def find_domains(root: Path) -> tuple[RaplDomain, ...]:
    """The packages of this machine and their memory, from the powercap tree at `root`; each by one driver only.

    Raises:
        EnergyError: There is none, or it cannot be read.
    """
    zones = {path.name: path for depth in ("*:*", "*/*:*", "*/*/*:*") for path in sorted(root.glob(depth))}
    # Sorted so that of two drivers' views of one package `intel-rapl` comes before `intel-rapl-mmio`.
    named = sorted((zone, path, _read_text(path / "name")) for zone, path in zones.items() if (path / "name").exists())
    named.sort(key=lambda entry: "mmio" in entry[0])
    package_of = {zone: name for zone, _path, name in named if name.startswith("package-")}
    found: list[RaplDomain] = []
    driver_of: dict[str, str] = {}
    for zone, path, name in named:
        owner = package_of.get(zone.rsplit(":", 1)[0])
        if zone not in package_of and (name != "dram" or owner is None):
            continue
        kind: Kind = "package" if zone in package_of else "dram"
        label, driver = name if kind == "package" else f"{owner} dram", zone.partition(":")[0]
        if driver_of.setdefault(label, driver) == driver:
            found.append(RaplDomain(label, kind, path, _range_j(path), _max_power_w(path)))
    if not any(domain.kind == "package" for domain in found):
        raise EnergyError(f"this machine shows no RAPL counters (nothing called package-* under {root})")
    return tuple(found)


def _range_j(zone: Path) -> float | None:
    """`None` for 0 as well, which says as little."""
    range_uj = _read_number(zone / "max_energy_range_uj")
    return range_uj / 1e6 if range_uj > 0 else None


def _max_power_w(zone: Path) -> float:
    """By the limits that the processor has and is set to, where the tree shows them."""
    limits_w = []
    for path in (*zone.glob("constraint_*_max_power_uw"), *zone.glob("constraint_*_power_limit_uw")):
        with contextlib.suppress(EnergyError):  # not every constraint has a limit to show
            limits_w.append(_read_number(path) / 1e6)
    highest_w = max(limits_w, default=0.0)
    return min(MAX_PACKAGE_POWER_W, ABSURD_FACTOR * highest_w) if highest_w > 0 else MAX_PACKAGE_POWER_W


def _read_number(path: Path) -> int:
    text = _read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise EnergyError(f"{path} holds {text!r} where a number is expected") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except PermissionError as error:
        raise EnergyError(
            f"{path} may not be read by this user. Allow it until the next boot with: "
            f"sudo chmod a+r {path.parent.parent}/*/energy_uj {path.parent.parent}/*/*/energy_uj"
        ) from error
    except OSError as error:
        raise EnergyError(f"{path} cannot be read: {error.strerror or error}") from error
