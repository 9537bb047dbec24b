"""A scripted NVML: describe boards in Python, and the real nvidia-ml-py (and what is built on it) sees them.

    gpu = ScriptedGpu(waveform=constant(300.0), counter=Counter(period_s=0.1))
    with ScriptedNvml([gpu], tmp_path) as nvml:        # in this process
        pynvml.nvmlInit()
        ...
        assert gpu.counter_reads_between(t0, t1) == 0
        truth = gpu.true_energy_j(t0, t1)              # t0, t1 from time.monotonic()
    subprocess.run(..., env={**os.environ, **nvml.environment()})   # or in another one

All times that cross this module's methods are `time.monotonic()`; times inside a description (waveforms, faults,
phases, series) are seconds from the script's origin, which is when `ScriptedNvml` was made, or, with
`origin="first_init"`, when any process first calls `nvmlInit`.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import mmap
import os
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tests.nvml.virtual import ARCHITECTURES, Board, Counter
from tests.nvml.waveform import Waveform, constant

SOURCE = Path(__file__).with_name("scripted_nvml.c")
BUILD_DIR = Path(__file__).with_name("_build")

NVML_NOT_SUPPORTED, NVML_NO_PERMISSION, NVML_FUNCTION_NOT_FOUND, NVML_GPU_IS_LOST, NVML_UNKNOWN = 3, 4, 13, 15, 999
NVML_VALUE_UNAVAILABLE = 0xFFFFFFFF

Series = float | Sequence[tuple[float, float]]
"""A value for ever, or the value from each time on."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong, where and when.

    Args:
        function: NVML function (`nvmlDeviceGetPowerUsage`), field (`field:185`, `field:186`), or `*` for all.
        kind: `error`: return the code `amount`. `sleep`: take `amount` seconds. `value`: read the raw number `amount`.
        amount: See `kind`.
        from_s: From this time of the script on.
        until_s: Up to this time.
        after_calls: Only after so many calls.
    """

    function: str
    kind: Literal["error", "sleep", "value"]
    amount: float
    from_s: float = -math.inf
    until_s: float = math.inf
    after_calls: int = 0


@dataclass(frozen=True)
class Process:
    """A process that the driver lists on a board."""

    pid: int
    memory_mb: float = 500.0
    compute: bool = True
    from_s: float = -math.inf
    until_s: float = math.inf


@dataclass(frozen=True)
class MigSlice:
    """A MIG slice; a board that has one has MIG switched on."""

    uuid: str
    gpu_instance: int = 1
    compute_instance: int = 0
    memory_mb: float = 10_000.0


@dataclass(frozen=True)
class Call:
    """One call that the library answered."""

    time_s: float
    device: int
    pid: int
    function: str


@dataclass
class ScriptedGpu(Board):
    """One board: `Board` plus everything else that NVML tells about it.

    `ScriptedGpu.of("hopper", waveform=...)` takes sensors, counter and identity from `ARCHITECTURES`.
    """

    uuid: str = ""
    name: str = "NVIDIA Scripted GPU"
    serial: str = "1320000000000"
    bus_id: str = ""
    architecture: int = 9
    compute_capability: tuple[int, int] = (9, 0)
    persistence_mode: bool = True
    grace: bool = False
    module_extra_w: float | None = None
    power_limit_w: float = 700.0
    default_power_limit_w: float = 700.0
    power_limit_range_w: tuple[float, float] = (200.0, 700.0)
    max_clocks_mhz: tuple[int, int] = (1980, 2619)
    memory_total_mb: float = 80_000.0
    usage: Literal["instant", "average"] = "average"
    field_timestamp: Literal["query", "update", "none"] = "query"
    temperature_c: Series = 45.0
    sm_clock_mhz: Series = 1980.0
    memory_clock_mhz: Series = 2619.0
    utilisation_pct: Series = 50.0
    memory_utilisation_pct: Series = 20.0
    memory_used_mb: Series = 1000.0
    throttle_reasons: Series = 0.0
    processes: Sequence[Process] = ()
    mig_slices: Sequence[MigSlice] = ()
    faults: Sequence[Fault] = ()
    _nvml: ScriptedNvml | None = field(default=None, repr=False, compare=False)
    _index: int = field(default=0, repr=False, compare=False)

    @classmethod
    def of(
        cls, architecture: str, *, waveform: Waveform | None = None, faults: Sequence[Fault] = (), **more: object
    ) -> ScriptedGpu:
        """A board of an architecture of `ARCHITECTURES`; `more` overrides any field."""
        kind = ARCHITECTURES[architecture]
        missing = () if kind.instant_field else tuple(fault_of(f"field:{n}", NVML_NOT_SUPPORTED) for n in (185, 186))
        values: dict[str, object] = {
            "waveform": waveform or constant(100.0),
            "instant": kind.instant,
            "average": kind.average,
            "buffer": kind.buffer,
            "counter": Counter() if kind.counter else None,
            "usage": kind.usage,
            "architecture": kind.nvml_id,
            "compute_capability": kind.compute_capability,
            "faults": (*missing, *faults),
        }
        return cls(**{**values, **more})  # type: ignore[arg-type]

    def energy_between_j(self, start_s: float, end_s: float) -> float:
        """Joules that really flowed between two `time.monotonic()` times."""
        origin = self._bound().origin_s
        return self.true_energy_j(start_s - origin, end_s - origin)

    def counter_reads_between(self, start_s: float, end_s: float) -> int:
        """How often anyone read this board's energy counter between two `time.monotonic()` times."""
        return sum(call.function == "nvmlDeviceGetTotalEnergyConsumption" for call in self.calls(start_s, end_s))

    def calls(self, start_s: float = -math.inf, end_s: float = math.inf) -> list[Call]:
        """Calls about this board between two `time.monotonic()` times."""
        return [c for c in self._bound().calls() if c.device == self._index and start_s <= c.time_s <= end_s]

    def set_power_now(self, power_w: float) -> None:
        """From now on the board draws `power_w`."""
        nvml = self._bound()
        nvml.write_live_step(self._index, self.set_power(power_w, time.monotonic() - nvml.origin_s))

    def bind(self, nvml: ScriptedNvml, index: int) -> None:
        """Take a place in a script; names that were left open get their number."""
        self._nvml, self._index = nvml, index
        self.uuid = self.uuid or f"GPU-{index:08x}-5c21-4e60-9d3a-0123456789ab"
        self.bus_id = self.bus_id or f"00000000:{index + 1:02X}:00.0"

    def script(self) -> Iterator[str]:
        """The lines that describe this board to the library."""
        yield "gpu"
        yield f"uuid {self.uuid}"
        yield f"name {self.name}"
        yield f"serial {self.serial}"
        yield f"bus_id {self.bus_id}"
        major, minor = self.compute_capability
        yield f"identity {self.architecture} {major} {minor} {self.persistence_mode:d} {self.grace:d}"
        low, high = self.power_limit_range_w
        limits = (self.power_limit_w, self.default_power_limit_w, self.power_limit_w, low, high)
        yield "limits_mw " + " ".join(str(round(limit * 1000)) for limit in limits)
        yield f"maxima {self.max_clocks_mhz[0]} {self.max_clocks_mhz[1]} {self.memory_total_mb!r}"
        timestamps = ("query", "update", "none").index(self.field_timestamp)
        extra = -1.0 if self.module_extra_w is None else self.module_extra_w
        yield f"readings {self.gain!r} {extra!r} {self.seed} {timestamps} {self.usage == 'average':d}"
        yield _line("wave", len(self.waveform.knots), self.waveform.period_s, *_flat(self.waveform.knots))
        for key, sensor in (("instant", self.instant), ("average", self.average), ("buffer", self.buffer)):
            if sensor is not None:
                yield _line(key, sensor.window_s, sensor.update_s, sensor.phase_s, sensor.noise_w)
        if self.counter is not None:
            counter = self.counter
            yield _line("counter", counter.period_s, counter.phase_s, counter.base_j, int(counter.follows_sensor))
        for event in self.counter_events:
            kind = ("reset", "freeze", "jump").index(event.kind)
            yield _line("counter_event", kind, event.at_s, event.until_s, event.amount_j)
        for name in SERIES:
            value: Series = getattr(self, name)
            points = [(0.0, value)] if isinstance(value, int | float) else list(value)
            yield _line("series", name, len(points), *_flat(points))
        for p in self.processes:
            yield _line("process", int(p.compute), p.pid, p.memory_mb, p.from_s, p.until_s)
        for f in self.faults:
            kind = ("error", "sleep", "value").index(f.kind)
            yield _line("fault", kind, f.from_s, f.until_s, f.amount, f.after_calls, f.function)
        for s in self.mig_slices:
            yield _line("mig", s.gpu_instance, s.compute_instance, s.memory_mb, s.uuid)

    def _bound(self) -> ScriptedNvml:
        if self._nvml is None:
            raise RuntimeError("this board is in no script yet: pass it to ScriptedNvml")
        return self._nvml


SERIES = (
    "temperature_c",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "utilisation_pct",
    "memory_utilisation_pct",
    "memory_used_mb",
    "throttle_reasons",
)


class ScriptedNvml:
    """A script and the file that its processes share; a context manager that also loads it into this process."""

    def __init__(
        self,
        gpus: Sequence[ScriptedGpu],
        directory: Path,
        *,
        driver: str = "550.54.15",
        cuda: int = 12040,
        origin: Literal["now", "first_init"] = "now",
    ) -> None:
        self.gpus = tuple(gpus)
        self.shared_object = build_library()
        handle, name = tempfile.mkstemp(prefix="nvml-", suffix=".shared", dir=directory)
        os.ftruncate(handle, _SHARED_BYTES)
        self._shared = mmap.mmap(handle, _SHARED_BYTES)
        os.close(handle)
        self.script = Path(name).with_suffix(".script")
        if origin == "now":
            struct.pack_into("d", self._shared, 0, time.monotonic())
        lines = [f"shared {name}", f"driver {driver}", f"cuda {cuda}"]
        for index, gpu in enumerate(self.gpus):
            gpu.bind(self, index)
            lines += gpu.script()
        self.script.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def __enter__(self) -> ScriptedNvml:
        self.load()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def origin_s(self) -> float:
        """`time.monotonic()` of the script's time 0."""
        (origin,) = struct.unpack_from("d", self._shared, 0)
        if origin == 0.0:
            raise RuntimeError("no process has called nvmlInit yet")
        return float(origin)

    def environment(self) -> dict[str, str]:
        """Variables with which a new process finds the library and the script."""
        paths = [str(self.shared_object.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {"SCRIPTED_NVML": str(self.script), "LD_LIBRARY_PATH": ":".join(p for p in paths if p)}

    def load(self) -> None:
        """Put the library into this process (before anyone else loads an NVML) and play this script on it."""
        library = ctypes.CDLL(str(self.shared_object), mode=ctypes.RTLD_GLOBAL)
        line = library.scripted_nvml_load(os.fsencode(self.script))
        if line != 0:
            raise RuntimeError(f"{self.script}: line {line} cannot be read")

    def calls(self) -> list[Call]:
        """Every call so far, of all processes, in order."""
        (count,) = struct.unpack_from("Q", self._shared, 8)
        if count > _LOG_RECORDS:
            raise RuntimeError(f"the log of calls holds {_LOG_RECORDS}, {count} were made")
        found = []
        for i in range(count):
            time_s, device, pid, name = _RECORD.unpack_from(self._shared, _LOG_AT + i * _RECORD.size)
            found.append(Call(time_s, device, pid, name.rstrip(b"\0").decode()))
        return found

    def write_live_step(self, device: int, step: tuple[float, float, float]) -> None:
        """Tell the library about a step of power (`Board.set_power`)."""
        at = _HEADER_BYTES + device * _LIVE_BYTES
        (count,) = struct.unpack_from("Q", self._shared, at)
        if count == _LIVE_STEPS:
            raise RuntimeError(f"a board takes {_LIVE_STEPS} steps of power at most")
        struct.pack_into("3d", self._shared, at + 8 + count * 24, *step)
        struct.pack_into("Q", self._shared, at, count + 1)

    def close(self) -> None:
        """Take the boards away (this process then has no driver) and remove the shared file."""
        ctypes.CDLL(str(self.shared_object), mode=ctypes.RTLD_GLOBAL).scripted_nvml_unload()
        self.script.with_suffix(".shared").unlink(missing_ok=True)


def scripted_env(gpus: Sequence[ScriptedGpu], directory: Path) -> dict[str, str]:
    """Environment variables for a process that shall see `gpus`; the script starts at its first `nvmlInit`."""
    return ScriptedNvml(gpus, directory, origin="first_init").environment()


def fault_of(function: str, code: int, from_s: float = -math.inf) -> Fault:
    """`function` returns the NVML error `code` from a time on."""
    return Fault(function, "error", code, from_s)


def have_compiler() -> bool:
    """Whether the library can be built on this machine."""
    return shutil.which("gcc") is not None


def build_library() -> Path:
    """Compile the library, once per state of its source, and say where it is."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    library = BUILD_DIR / digest / "libnvidia-ml.so.1"
    if library.exists():
        return library
    if not have_compiler():
        raise RuntimeError("the scripted NVML needs gcc; install it (apt-get install gcc libc6-dev)")
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as scratch:
        built = Path(scratch) / library.name
        flags = ["-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-soname,libnvidia-ml.so.1"]
        command = ["gcc", *flags, "-o", str(built), str(SOURCE), "-lm", "-lpthread"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"the scripted NVML does not compile:\n{done.stderr}")
        built.replace(library)
    return library


# The shared file, as `Shared` in scripted_nvml.c lays it out.
_HEADER_BYTES = 4096
_LIVE_STEPS = 2048
_LIVE_BYTES = 8 + 24 * _LIVE_STEPS
_RECORD = struct.Struct("dii48s")
_LOG_RECORDS = 262144
_LOG_AT = _HEADER_BYTES + 16 * _LIVE_BYTES
_SHARED_BYTES = _LOG_AT + _LOG_RECORDS * _RECORD.size


def _flat(points: Sequence[tuple[float, float]]) -> list[float]:
    return [number for point in points for number in point]


def _line(key: str, *words: object) -> str:
    return " ".join([key, *(repr(float(w)) if isinstance(w, float) else str(w) for w in words)])
