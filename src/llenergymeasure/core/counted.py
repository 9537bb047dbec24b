"""Which part of the window counts: all of it, or what `measurement:` leaves of it (methodology `windowed`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from llenergymeasure.config.models import ExperimentConfig, MeasurementConfig
from llenergymeasure.core.energy.integrate import TraceTooShortError, integrate_power
from llenergymeasure.core.energy.types import DeviceId, EnergyMeasurement, Telemetry
from llenergymeasure.core.metrics.counting import TokenCounts, count_tokens, count_tokens_between, full_batch_interval
from llenergymeasure.core.window import Window
from llenergymeasure.domain.experiment import Methodology
from llenergymeasure.domain.warnings import MeasurementWarning, WarningCode
from llenergymeasure.exceptions import ExperimentError


@dataclass(frozen=True, slots=True)
class CountedPart:
    """The part of a window that goes into the headline figures.

    Args:
        methodology: `total`, `steady_state` or `windowed`.
        start_s: Its start on the measurement clock, in seconds.
        end_s: Its end, likewise.
        tokens: What was produced in it.
        energy: What was spent in it.
    """

    methodology: Methodology
    start_s: float
    end_s: float
    tokens: TokenCounts
    energy: EnergyMeasurement

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.end_s - self.start_s


def counted_part(config: ExperimentConfig, window: Window) -> CountedPart:
    """Find the part of `window` that counts, its tokens and its energy.

    Raises:
        ExperimentError: Nothing was produced in it, or it cannot be told apart.
    """
    energy = window.energy
    if not is_windowed(config.measurement):
        methodology: Methodology = "steady_state" if config.warmup.enabled else "total"
        return CountedPart(methodology, energy.start_s, energy.end_s, count_tokens(window.outputs), energy)
    start_s, end_s = _limits(config.measurement, window)
    tokens = count_tokens_between(window.outputs, start_s, end_s)
    return CountedPart("windowed", start_s, end_s, tokens, energy_between(energy, start_s, end_s))


def is_windowed(config: MeasurementConfig) -> bool:
    """Whether `config` counts only a part of the generation."""
    return bool(config.skip_first_seconds or config.skip_last_seconds or config.full_batch_only)


def energy_between(energy: EnergyMeasurement, start_s: float, end_s: float) -> EnergyMeasurement:
    """Energy of a part of a metered window, from its power samples: counters are read at the window's edges only.

    The power trace is scaled so that over the whole window it agrees with the meter's own figure; the sensor's
    averaging cancels in that ratio.

    Args:
        energy: What the meter saw of the whole window.
        start_s: Start of the part on the measurement clock, in seconds.
        end_s: End of the part, likewise.
    """
    part = replace(
        energy, start_s=start_s, end_s=end_s, method="power_integration", counter_j=None, fused_j=None,
        cpu_j=None, dram_j=None,
    )  # fmt: skip
    if energy.total_j is None:
        return part
    if energy.telemetry is None:
        return _unmeasured(part, f"the {energy.meter} meter gives no power samples, and a part of a window needs them")
    try:
        traced_j = {d: _traced_j(energy.telemetry, d, start_s, end_s) for d in energy.telemetry.devices}
        whole_j = {d: _traced_j(energy.telemetry, d, energy.start_s, energy.end_s) for d in energy.telemetry.devices}
    except TraceTooShortError as error:
        return _unmeasured(part, str(error))
    traced, whole = sum(traced_j.values()), sum(whole_j.values())
    if whole <= 0:
        return _unmeasured(part, "the power samples of the window add up to nothing")
    scale = energy.total_j / whole
    share = traced / whole
    return replace(
        part,
        total_j=traced * scale,
        per_gpu_j={device: traced_j[device] * scale for device in energy.per_gpu_j if device in traced_j},
        integral_j=traced,
        components=tuple(replace(c, half_width_j=_shrunk(c.kind, c.half_width_j, share)) for c in energy.components),
    )


def _shrunk(kind: str, half_width_j: float, share: float) -> float:
    """An error proportional to energy shrinks with the part; one made at the window's edges does not."""
    return half_width_j * share if kind in ("gain", "sensor", "model") else half_width_j


def _traced_j(telemetry: Telemetry, device: DeviceId, start_s: float, end_s: float) -> float:
    samples = [(s.time_s, s.power_w) for s in telemetry.samples(device) if s.power_w is not None]
    return integrate_power([time_s for time_s, _ in samples], [power_w for _, power_w in samples], start_s, end_s)


def _unmeasured(part: EnergyMeasurement, reason: str) -> EnergyMeasurement:
    note = MeasurementWarning(WarningCode.ENERGY_UNAVAILABLE, f"energy of the counted part is unknown: {reason}")
    return replace(
        part, total_j=None, method=None, per_gpu_j={}, integral_j=None, components=(), notes=(*part.notes, note)
    )


def _limits(config: MeasurementConfig, window: Window) -> tuple[float, float]:
    start_s = window.energy.start_s + (config.skip_first_seconds or 0.0)
    end_s = window.energy.end_s - (config.skip_last_seconds or 0.0)
    if config.full_batch_only:
        full_s, drained_s = full_batch_interval(window.outputs)
        start_s, end_s = max(start_s, full_s), min(end_s, drained_s)
    if end_s <= start_s:
        raise ExperimentError(
            f"nothing is left of the {window.energy.duration_sec:.2f} s window after measurement.skip_first_seconds "
            f"= {config.skip_first_seconds or 0:g}, skip_last_seconds = {config.skip_last_seconds or 0:g} and "
            f"full_batch_only = {str(config.full_batch_only).lower()}; measure for longer or skip less."
        )
    return start_s, end_s
