"""Statistics over the cycles of a study: how far repeated measurements of one configuration spread."""

from __future__ import annotations

import math
import random
import statistics
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.latency import percentile
from llenergymeasure.domain.metrics import ratio
from llenergymeasure.domain.study import ConfigurationStatistics, CycleStatistics, IntervalMethod
from llenergymeasure.domain.warnings import codes_of
from llenergymeasure.results.student_t import student_t_quantile

HIGH_VARIATION_PCT: Final = 5.0
"""Coefficient of variation, in per cent, above which a configuration is flagged."""

NORMAL_FROM: Final = 30
"""Number of runs from which the normal quantile replaces Student's t."""

BOOTSTRAP_RESAMPLES: Final = 10_000


def summarise_configurations(
    results: Iterable[ExperimentResult], interval: Literal["parametric", "bootstrap"] = "parametric"
) -> list[ConfigurationStatistics]:
    """Every configuration over its cycles, in the order of first appearance; results may come one by one.

    Cycles on unlike hardware are no repetitions of one another: each kind has an entry of its own.
    """
    groups: dict[tuple[str, str | None], _Runs] = {}
    for result in results:
        environment = result.environment_snapshot
        kind = None if environment is None else environment.kind
        groups.setdefault((result.measurement_config_hash, kind), _Runs.like(result)).add(result)
    kinds = Counter(config_hash for config_hash, _ in groups)
    statistics = [
        ConfigurationStatistics(
            measurement_config_hash=config_hash,
            config_name=_name(runs, kind if kinds[config_hash] > 1 else None),
            hardware=kind if kinds[config_hash] > 1 else None,
            model_name=runs.model_name,
            backend=runs.backend,
            cycles=runs.count,
            estimated=runs.estimated,
            energy_per_token_j=cycle_statistics(runs.energy_per_token_j, interval),
            tokens_per_second=cycle_statistics(runs.tokens_per_second, interval),
            ttft_ms=cycle_statistics(runs.ttft_ms, interval),
            warnings=runs.warnings,
        )
        for (config_hash, kind), runs in groups.items()
    ]
    return list(_against_best(statistics))


def _name(runs: _Runs, hardware: str | None) -> str | None:
    """What the entry is called: one of several for one configuration says on what it ran."""
    return runs.config_name if hardware is None else " / ".join(filter(None, [runs.config_name, hardware]))


@dataclass(slots=True)
class _Runs:
    """What statistics need of the results of one configuration: three numbers each. A large study must fit in memory.

    Args:
        warnings: Code of each warning, and in how many of the results it is.
    """

    config_name: str | None
    model_name: str | None
    backend: str
    count: int = 0
    estimated: bool = False
    energy_per_token_j: array[float] = field(default_factory=lambda: array("d"))
    tokens_per_second: array[float] = field(default_factory=lambda: array("d"))
    ttft_ms: array[float] = field(default_factory=lambda: array("d"))
    warnings: Counter[str] = field(default_factory=Counter)

    @classmethod
    def like(cls, result: ExperimentResult) -> _Runs:
        return cls(result.config_name, result.model_name, result.backend)

    def add(self, result: ExperimentResult) -> None:
        self.count += 1
        self.estimated = self.estimated or result.is_estimate
        self.warnings.update(codes_of(result.measurement_warnings))
        ttft = result.latency_stats.ttft_ms if result.latency_stats is not None else None
        self.tokens_per_second.append(result.avg_tokens_per_second)
        if result.avg_energy_per_token_j is not None:
            self.energy_per_token_j.append(result.avg_energy_per_token_j)
        if ttft is not None:
            self.ttft_ms.append(ttft.mean)


def _against_best(statistics: Sequence[ConfigurationStatistics]) -> Iterator[ConfigurationStatistics]:
    """Each with its place beside the best; of energies, beside the best of its kind."""
    least_j: dict[bool, float] = {}
    for entry in statistics:
        if entry.energy_per_token_j is not None:
            least_j[entry.estimated] = min(entry.energy_per_token_j.mean, least_j.get(entry.estimated, math.inf))
    fastest = max((entry.tokens_per_second.mean for entry in statistics if entry.tokens_per_second), default=0.0)
    for entry in statistics:
        own_j, own_speed = entry.energy_per_token_j, entry.tokens_per_second
        against = {
            "energy_vs_best": None if own_j is None else ratio(own_j.mean, least_j[entry.estimated]),
            "speed_vs_best": None if own_speed is None else ratio(own_speed.mean, fastest),
        }
        yield entry.model_copy(update=against)


def cycle_statistics(
    values: Iterable[float | None], interval: Literal["parametric", "bootstrap"] = "parametric", seed: int = 0
) -> CycleStatistics | None:
    """Mean, spread and 95 % interval of the mean of repeated measurements.

    Args:
        values: One figure per cycle; `None` for a cycle that did not yield it.
        interval: `parametric`: mean ± quantile x standard error, Student's t below `NORMAL_FROM` values, normal from
            there. `bootstrap`: percentile bootstrap, for figures that are far from normally distributed.

    Returns:
        `None` when no cycle has a value. With one value there is a mean and no spread.
    """
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean = statistics.fmean(known)
    if len(known) == 1:
        return CycleStatistics(count=1, mean=mean)
    std = statistics.stdev(known)
    low, high, method = _bootstrap(known, seed) if interval == "bootstrap" else _parametric(mean, std, len(known))
    cv_pct = 100 * std / abs(mean) if mean else None
    return CycleStatistics(
        count=len(known),
        mean=mean,
        std=std,
        ci95_low=low,
        ci95_high=high,
        ci95_method=method,
        cv_pct=cv_pct,
        high_variation=cv_pct is not None and cv_pct > HIGH_VARIATION_PCT,
    )


def _parametric(mean: float, std: float, count: int) -> tuple[float, float, IntervalMethod]:
    small = count < NORMAL_FROM
    quantile = student_t_quantile(0.975, count - 1) if small else statistics.NormalDist().inv_cdf(0.975)
    half_width = quantile * std / math.sqrt(count)
    return mean - half_width, mean + half_width, "student_t" if small else "normal"


def _bootstrap(values: Sequence[float], seed: int) -> tuple[float, float, IntervalMethod]:
    generator = random.Random(seed)  # its own generator: the global one is not ours to move
    means = sorted(statistics.fmean(generator.choices(values, k=len(values))) for _ in range(BOOTSTRAP_RESAMPLES))
    return percentile(means, 2.5), percentile(means, 97.5), "bootstrap"
