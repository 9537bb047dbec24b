"""Results in the formats of other tools: by their rules, with our figures, and nothing where nothing is known."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llenergymeasure.domain.environment import EnvironmentSnapshot, MeasurementBoundary
from llenergymeasure.domain.latency import RequestTimings
from llenergymeasure.domain.metrics import extended_metrics
from llenergymeasure.results.export import FLAT_COLUMNS
from llenergymeasure.results.formats.__main__ import main
from llenergymeasure.results.formats.benchmark_report import benchmark_report
from llenergymeasure.results.formats.prometheus import prometheus_text
from llenergymeasure.results.persistence import save_result
from result_samples import make_result, make_rich_result

UNITS = {
    "time_to_first_token": {"ms", "s"},
    "request_latency": {"ms", "s"},
    "time_per_output_token": {"ms/token", "s/token"},
    "inter_token_latency": {"ms/token", "s/token"},
    "input_token_rate": {"tokens/s"},
    "output_token_rate": {"tokens/s"},
    "total_token_rate": {"tokens/s"},
    "request_rate": {"queries/s"},
    "input_length": {"count"},
    "output_length": {"count"},
    "power_consumption": {"Watts"},
}
"""Of each statistic, the units that schema 0.2 of llm-d's Benchmark Report takes."""


def samples(text: str) -> dict[tuple[str, str], float]:
    """Value of each gauge and experiment, as Prometheus' own parser reads the text."""
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(text))
    assert {family.type for family in families} <= {"gauge"}
    found = [sample for family in families for sample in family.samples]
    assert len({(sample.name, *sample.labels.items()) for sample in found}) == len(found)
    return {(sample.name, sample.labels["experiment_id"]): sample.value for sample in found}


def statistics_in(document: Any, name: str = "") -> list[tuple[str, dict[str, Any]]]:
    if not isinstance(document, (dict, list)):
        return []
    if isinstance(document, list):
        return [found for item in document for found in statistics_in(item)]
    here = [(name, document)] if "units" in document else []
    return here + [found for key, item in document.items() for found in statistics_in(item, key)]


def test_a_thousand_requests_of_a_joule_take_a_thousandth_of_3_6_wh() -> None:
    derived = extended_metrics(make_result(total_energy_j=360.0, num_requests=100))
    assert derived.energy_per_1000_requests_wh == pytest.approx(1.0)
    assert extended_metrics(make_result(num_requests=None)).energy_per_1000_requests_wh is None


def test_every_figure_of_the_row_is_a_gauge_with_its_value() -> None:
    first, second = make_rich_result(experiment_id="a"), make_result(experiment_id="b")
    read = samples(prometheus_text([first, second]))
    assert read["llenergymeasure_energy_per_token_j", "a"] == first.avg_energy_per_token_j
    assert read["llenergymeasure_tokens_per_second", "b"] == second.avg_tokens_per_second
    figures = {f"llenergymeasure_{column.name}" for column in FLAT_COLUMNS if column.type in ("integer", "number")}
    assert {name for name, _ in read} <= figures
    assert not any(name.startswith(("llenergymeasure_cycle", "llenergymeasure_model")) for name, _ in read)


def test_a_cost_says_in_which_currency() -> None:
    text = prometheus_text([make_result(cost=0.5, currency="EUR")])
    assert re.search(r'^llenergymeasure_cost\{.*currency="EUR"\} 0\.5$', text, re.MULTILINE)
    assert "currency" not in prometheus_text([make_result()])


def test_what_was_not_measured_has_no_gauge() -> None:
    read = samples(prometheus_text([make_result(total_energy_j=None, avg_energy_per_token_j=None)]))
    assert ("llenergymeasure_total_energy_j", "exp-1") not in read
    assert prometheus_text([]) == ""


def test_a_label_may_hold_what_it_likes() -> None:
    pytest.importorskip("prometheus_client.parser")
    from prometheus_client.parser import text_string_to_metric_families

    name = 'a "quoted"\\ name\nof two lines'
    family = next(iter(text_string_to_metric_families(prometheus_text([make_result(config_name=name)]))))
    assert family.samples[0].labels["config_name"] == name


def test_a_benchmark_report_names_its_units_as_the_schema_does() -> None:
    report = benchmark_report(make_rich_result())
    found = statistics_in(report)
    assert {name for name, _ in found} >= {"time_to_first_token", "output_token_rate", "power_consumption"}
    for name, statistic in found:
        assert statistic["units"] in UNITS[name]
        assert None not in statistic.values()
    assert set(report) == {"version", "run", "scenario", "results"}
    energy = report["results"]["observability"]["llenergymeasure"]
    assert (energy["total_energy_j"], energy["meter"], energy["scope"]) == (5273.0, "nvml", "gpu")
    assert energy["energy_per_1000_requests_wh"] == pytest.approx(1000 * 52.73 / 3600)


def test_a_gpu_is_an_accelerator_and_a_forced_length_is_fixed() -> None:
    result = make_rich_result(
        backend="vllm",
        effective_config={
            "model": "m",
            "dataset": {"n": 2},
            "max_output_tokens": 2,
            "decoder": {"min_new_tokens": 2},
            "vllm": {"tensor_parallel_size": 2},
        },
        measurement_boundary=MeasurementBoundary(devices=["GPU-0", "GPU-1"], device_names=["H100", "H100"]),
        environment_snapshot=EnvironmentSnapshot(
            python_version="3.11", tool_version="2.0.0", platform="Linux", gpu_names=["H100", "H100"]
        ),
        requests=RequestTimings(input_tokens=[5, 5], output_tokens=[2, 2], e2e_ms=[1.0, 1.0]),
    )
    scenario = benchmark_report(result)["scenario"]
    engine, load = scenario["stack"][0]["standardized"], scenario["load"]["standardized"]
    assert (engine["kind"], engine["accelerator"]["count"], engine["accelerator"]["model"]) == (
        "inference_engine",
        2,
        "H100",
    )
    assert engine["accelerator"]["parallelism"] == {"tp": 2, "pp": 1}
    assert load["input_seq_len"] == {"distribution": "fixed", "value": 5}
    assert load["output_seq_len"] == {"distribution": "fixed", "value": 2}
    assert load["source"] == "random"


def test_a_report_of_the_least_result_invents_nothing() -> None:
    report = benchmark_report(make_result(total_energy_j=None, avg_energy_per_token_j=None))
    assert "load" not in report["scenario"]
    assert "observability" not in report["results"]
    assert set(report["results"]["request_performance"]["aggregate"]) == {"throughput"}


def test_a_text_goes_to_standard_output_or_whole_to_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_result(make_rich_result(), tmp_path / "results")
    assert main([str(tmp_path), "--to", "benchmark-report"]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["version"] == "0.2"
    assert main([str(tmp_path), "--to", "benchmark-report", "-o", str(tmp_path / "report.yaml")]) == 0
    assert (tmp_path / "report.yaml").read_text() == printed
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing", "--to", "prometheus"], "No result.json below nothing."),
        (["results", "--to", "prometheus", "-o", "no/such/place"], "no/such/place"),
    ],
)
def test_what_cannot_be_done_is_told_with_exit_code_1(
    arguments: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_result(make_result(), tmp_path / "results")
    assert main(arguments) == 1
    assert said in capsys.readouterr().err


def test_a_copy_of_a_result_is_no_second_series(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = save_result(make_rich_result(), tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    assert main([str(file), "--to", "prometheus"]) == 0
    alone = capsys.readouterr().out
    assert main([str(tmp_path), "--to", "prometheus"]) == 0
    assert capsys.readouterr().out == alone
    assert samples(alone)


@pytest.mark.parametrize("format_", ["prometheus", "benchmark-report"])
def test_a_full_disk_behind_standard_output_is_named(tmp_path: Path, format_: str) -> None:
    save_result(make_result(), tmp_path)
    command = [sys.executable, "-m", "llenergymeasure.results.formats", str(tmp_path), "--to", format_]
    with Path("/dev/full").open("w") as full:
        said = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (said.returncode, said.stderr) == (1, "Cannot write to stdout: No space left on device.\n")


def test_without_mlflow_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    save_result(make_result(), tmp_path)
    assert main([str(tmp_path), "--to", "mlflow"]) == 1
    assert "pip install mlflow-skinny" in capsys.readouterr().err
