"""A result as a Benchmark Report of llm-d, schema 0.2.

https://github.com/llm-d/llm-d-benchmark, llmdbenchmark/analysis/benchmark_report/schema_v0_2.py as of August 2026; a
report of 0.2 is one of 0.2.1 too, but for its number. What was not measured is left out. The schema has a place for
power and none for joules: these stand among the observed metrics, where it allows names of others.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import yaml

from llenergymeasure.constants import VERSION
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.latency import LatencyStatistics, Percentiles
from llenergymeasure.domain.metrics import ratio, wh_per_1000
from llenergymeasure.results.export import OUTPUT_DIR, model_of

SCHEMA_VERSION: Final = "0.2"
TOOL: Final = "llenergymeasure"
ENGINE_LABEL: Final = "engine"

Document = dict[str, Any]


def benchmark_reports(results: Iterable[ExperimentResult]) -> str:
    """The results as YAML, a document each."""
    return yaml.safe_dump_all(map(benchmark_report, results), sort_keys=False, allow_unicode=True)


def benchmark_report(result: ExperimentResult) -> Document:
    """One result as a report."""
    return _known(
        {
            "version": SCHEMA_VERSION,
            "run": {
                "uid": result.experiment_id,
                "eid": result.measurement_config_hash,
                "time": {
                    "start": result.start_time.isoformat(),
                    "end": result.end_time.isoformat(),
                    "duration": f"PT{result.duration_sec:f}S",
                },
                "description": result.config_name,
            },
            "scenario": {"stack": [_engine(result)], "load": _load(result)},
            "results": {
                "request_performance": {"aggregate": _performance(result)},
                "observability": _observed(result),
            },
        }
    )


def _engine(result: ExperimentResult) -> Document:
    tool = {"tool": result.backend, "tool_version": result.backend_version or "unknown"}
    standardized: Document = {"kind": "generic", **tool, "model": {"name": model_of(result) or "unknown"}}
    names = result.measurement_boundary.device_names if result.measurement_boundary else []
    if names and _gpus(result):
        processes = result.aggregation.num_processes if result.aggregation else 1
        standardized = {
            "kind": "inference_engine",
            **tool,
            "role": "replica",
            "replicas": processes,
            "model": {"name": model_of(result) or "unknown"},
            "accelerator": {"model": names[0], "count": len(names), "parallelism": _parallelism(result)},
        }
    return {
        "metadata": {"label": ENGINE_LABEL, "cfg_id": result.measurement_config_hash},
        "standardized": standardized,
        "native": {"config": {key: value for key, value in result.effective_config.items() if key != OUTPUT_DIR}},
    }


def _parallelism(result: ExperimentResult) -> Document:
    section = result.effective_config.get(result.backend) or {}
    tensor = section.get("tensor_parallel_size") or section.get("tp_size")
    pipeline = section.get("pipeline_parallel_size") or section.get("pp_size")
    return {"tp": tensor or 1, "pp": pipeline or 1}


def _load(result: ExperimentResult) -> Document | None:
    """What was asked, which a report has with the prompts' lengths or not at all."""
    config, dataset = result.effective_config, result.effective_config.get("dataset")
    input_length = _input_length(result)
    if input_length is None:
        return None
    return {
        "metadata": {"description": None if result.dataset is None else result.dataset.name},
        "standardized": {
            "tool": TOOL,
            "tool_version": VERSION,
            "source": "random" if isinstance(dataset, dict) else "sampled",
            "input_seq_len": input_length,
            "output_seq_len": _forced_length(config),
        },
        "native": {"config": {"dataset": dataset, "n": config.get("n")}},
    }


def _input_length(result: ExperimentResult) -> Document | None:
    """The prompts' lengths; the mean alone where single ones are not kept."""
    lengths, mean = _lengths(result, "input_tokens"), ratio(result.input_tokens, result.num_requests)
    if not lengths:
        return None if mean is None else {"distribution": "other", "value": mean}
    if min(lengths) == max(lengths):
        return {"distribution": "fixed", "value": lengths[0]}
    return {"distribution": "other", "value": statistics.fmean(lengths), "min": min(lengths), "max": max(lengths)}


def _forced_length(config: Mapping[str, Any]) -> Document | None:
    forced, most = (config.get("decoder") or {}).get("min_new_tokens"), config.get("max_output_tokens")
    return {"distribution": "fixed", "value": most} if forced is not None and forced == most else None


def _performance(result: ExperimentResult) -> Document:
    window_s = result.total_inference_time_sec
    latency = result.latency_stats or LatencyStatistics()
    return {
        "requests": None
        if result.num_requests is None
        else {
            "total": result.num_requests,
            "failures": 0,  # one failed request fails the experiment
            "input_length": _of_values(_lengths(result, "input_tokens")),
            "output_length": _of_values(_lengths(result, "output_tokens")),
        },
        "latency": {
            "time_to_first_token": _of_percentiles(latency.ttft_ms, "ms"),
            "time_per_output_token": _of_percentiles(latency.tpot_ms, "ms/token"),
            "inter_token_latency": _of_percentiles(latency.itl_ms, "ms/token"),
            "request_latency": _of_percentiles(latency.e2e_ms, "ms"),
        },
        "throughput": {
            "input_token_rate": _mean(ratio(result.input_tokens, window_s), "tokens/s"),
            "output_token_rate": _mean(result.avg_tokens_per_second, "tokens/s"),
            "total_token_rate": _mean(ratio(result.total_tokens, window_s), "tokens/s"),
            "request_rate": _mean(ratio(result.num_requests, window_s), "queries/s"),
        },
    }


def _observed(result: ExperimentResult) -> Document:
    breakdown, uncertainty = result.energy_breakdown, result.uncertainty
    power_w = ratio(result.total_energy_j, result.total_inference_time_sec)
    return {
        "components": None
        if power_w is None
        else [{"component_label": ENGINE_LABEL, "aggregate": {"power_consumption": _mean(power_w, "Watts")}}],
        TOOL: {
            "total_energy_j": result.total_energy_j,
            "energy_per_output_token_j": result.avg_energy_per_token_j,
            "energy_per_1000_requests_wh": wh_per_1000(ratio(result.total_energy_j, result.num_requests)),
            "half_width_95_j": uncertainty and uncertainty.absolute_j,
            "meter": breakdown and breakdown.meter,
            "method": breakdown and breakdown.method,
            "scope": breakdown and breakdown.scope,
            "warnings": result.measurement_warnings or None,
        },
    }


def _lengths(result: ExperimentResult, column: str) -> list[int]:
    return [length for timings in (result.requests,) if timings is not None for length in getattr(timings, column)]


def _of_values(values: Sequence[int]) -> Document | None:
    if not values:
        return None
    return {"units": "count", "mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def _of_percentiles(seen: Percentiles | None, units: str) -> Document | None:
    if seen is None:
        return None
    return {
        "units": units,
        **{name: getattr(seen, name) for name in ("mean", "min", "p50", "p90", "p95", "p99", "max")},
    }


def _mean(value: float | None, units: str) -> Document | None:
    return None if value is None else {"units": units, "mean": value}


def _gpus(result: ExperimentResult) -> bool:
    return result.environment_snapshot is not None and bool(result.environment_snapshot.gpu_names)


def _known(document: Document) -> Document:
    """Without what is null, at any depth outside the native configuration, and without what is empty then."""
    kept = {key: item if key == "config" else _known_part(item) for key, item in document.items()}
    return {key: item for key, item in kept.items() if item is not None and item != {}}


def _known_part(value: Any) -> Any:
    if isinstance(value, list):
        return [_known_part(item) for item in value]
    return _known(value) if isinstance(value, dict) else value
