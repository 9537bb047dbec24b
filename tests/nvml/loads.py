"""Loads drawn at random for tests over many windows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from tests.nvml.waveform import Waveform, constant, noise, square

Load = Callable[[random.Random], Waveform]


def steady(draw: random.Random) -> Waveform:
    return constant(draw.uniform(80.0, 600.0))


def any_square(draw: random.Random) -> Waveform:
    period_s = draw.uniform(0.25, 1.5)
    return square(draw.uniform(60.0, 200.0), draw.uniform(300.0, 600.0), period_s, phase_s=draw.uniform(0.0, period_s))


def slow_square(draw: random.Random) -> Waveform:
    return square(120.0, 500.0, 5.0, phase_s=draw.uniform(0.0, 5.0))


def pulses(draw: random.Random) -> Waveform:
    return square(100.0, 400.0, 0.23, duty=0.3, phase_s=draw.uniform(0.0, 0.23))


def fast_square(draw: random.Random) -> Waveform:
    period_s = draw.uniform(0.02, 0.2)
    return square(120.0, 500.0, period_s, phase_s=draw.uniform(0.0, period_s))


def any_noise(draw: random.Random) -> Waveform:
    return noise(350.0, draw.uniform(20.0, 80.0), draw.uniform(0.02, 0.3), 12.0, draw.getrandbits(30))


SAMPLED_LOADS: Sequence[Load] = (steady, any_square, slow_square, any_noise)
"""Loads that power samples can follow at all."""

ALL_LOADS: Sequence[Load] = (*SAMPLED_LOADS, pulses, fast_square)
