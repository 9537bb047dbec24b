"""Whole reports of results and studies: what they say, what they do not, and that they never cost a result."""

from __future__ import annotations

import json
import logging
import re
import resource
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings

from llenergymeasure.domain.base import EnergyScope
from llenergymeasure.domain.energy import EnergyBreakdown
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.latency import RequestEnergy, RequestTimings, percentiles
from llenergymeasure.domain.readable import quantity
from llenergymeasure.exceptions import PersistenceError
from llenergymeasure.results.persistence import REPORT_FILE, ResultFileWarning, load_result, load_study, save_result
from llenergymeasure.results.report.__main__ import main
from llenergymeasure.results.report.experiment import experiment_page
from llenergymeasure.results.report.write import report_on, write_report
from llenergymeasure.results.study_table import render_configurations, shown_energy, shown_mean
from llenergymeasure.results.summary import SCOPE_NAMES, energy_per_token, render_summary
from llenergymeasure.study.plan import PlannedRun
from report_checks import Page, read_page
from report_studies import large_study, run_figures, saved_study, study_of
from result_samples import make_result, make_rich_result, results

RELEASE_2_0 = Path(__file__).parents[1] / "data" / "release_2_0"


def saved(directory: Path, **changes: Any) -> Path:
    """The directory of a result with nearly every figure."""
    return save_result(make_rich_result(**changes), directory).parent


def report(directory: Path) -> Page:
    return read_page(write_report(directory).read_text(encoding="utf-8"))


def test_the_figures_are_those_of_the_result(tmp_path: Path) -> None:
    directory = saved(tmp_path, measurement_warnings=["power_throttling: the limit held the clocks back"])
    result, page = load_result(directory), report(directory)
    assert energy_per_token(result) in page.text.replace("\n", "")
    for figure in (
        quantity(result.avg_tokens_per_second),
        "5,273 J",
        "2,745 J",  # above idle
        "prefill: 949 J, 18 %",
        "decode: 4,324 J, 82 %",
        "integral of power samples alone 5,280 J",
        "the engine's own says 5,274 J",
        "the limit held the clocks back",
        "NVIDIA A100-SXM4-80GB",
        "torch==2.13.0",
        "batch_size: 8",
        "@software",
    ):
        assert figure in page.text, figure


@pytest.mark.parametrize(
    ("disagreement_pct", "agrees", "said"),
    [
        (0.13, True, "which their uncertainties allow (1.2 %)."),
        (0.13, False, "which their uncertainties allow (1.2 %), though not of each board."),
        (4.1, False, "more than their uncertainties allow (1.2 %)."),
    ],
)
def test_the_audit_is_told_of_all_boards_and_of_each(disagreement_pct: float, agrees: bool, said: str) -> None:
    result = make_rich_result()
    assert result.energy_audit is not None
    audit = result.energy_audit.model_copy(update={"disagreement_pct": disagreement_pct, "agrees": agrees})
    page = experiment_page(result.model_copy(update={"energy_audit": audit}), Path("/no/files"))
    assert said in read_page(page).text


@pytest.mark.parametrize(("fused_j", "said"), [(None, "counter says 532 J"), (538.6, "window's edges, says 539 J")])
def test_the_audit_names_the_joules_that_its_difference_is_of(fused_j: float | None, said: str) -> None:
    result = make_rich_result()
    assert result.energy_audit is not None
    audit = result.energy_audit.model_copy(update={"counter_j": 532.0, "integral_j": 538.3, "fused_j": fused_j})
    assert said in read_page(experiment_page(result.model_copy(update={"energy_audit": audit}), Path("/no/files"))).text


@pytest.mark.parametrize(("busy_pct", "waits"), [(24.0, True), (93.0, False), (None, False)])
def test_a_gpu_that_waits_for_the_host_is_told(tmp_path: Path, busy_pct: float | None, waits: bool) -> None:
    alone = {"energy_by_device_j": {"GPU-0": 5273.0}}
    page = report(saved(tmp_path, device_utilisation_pct=busy_pct, **alone))
    assert (f"Kernels ran in {busy_pct:g} % of the window" in page.text) if busy_pct else "Kernels ran" not in page.text
    assert ("waited for the host" in page.text) is waits
    several = {"energy_by_device_j": {"GPU-0": 2600.0, "GPU-1": 2673.0}}
    assert "waited" not in report(saved(tmp_path, device_utilisation_pct=busy_pct, **several)).text


def test_the_smallest_result_has_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    page = report(save_result(make_result(), tmp_path).parent)
    for missing in ("No power over time", "No uncertainty", "No latencies", "No joules of single requests", "None."):
        assert missing in page.text


def test_without_energy_no_joule_is_told(tmp_path: Path) -> None:
    page = report(save_result(make_result(total_energy_j=None, avg_energy_per_token_j=None), tmp_path).parent)
    assert "The energy of this run was not measured" in page.text
    assert not re.search(r"\d [mµ]?J\b", page.text)


def test_an_estimate_is_called_one(tmp_path: Path) -> None:
    breakdown = make_rich_result().energy_breakdown
    assert breakdown is not None
    estimated = breakdown.model_copy(update={"method": "model_estimate", "scope": "machine_model"})
    page = report(saved(tmp_path, energy_breakdown=estimated))
    assert "(estimated)" in page.text
    assert "an estimate by a model of the machine, not a measurement" in page.text


def test_every_value_alike_and_nothing_measured_at_all_can_be_drawn(tmp_path: Path) -> None:
    timings = RequestTimings(input_tokens=[1, 1], output_tokens=[2, 2], e2e_ms=[5.0, 5.0], energy_j=[0.0, 0.0])
    alike = saved(
        tmp_path, requests=timings, request_energy=RequestEnergy(energy_j=percentiles([0.0, 0.0]), stdev_j=0.0)
    )
    nothing = make_result(
        total_tokens=0, output_tokens=0, total_energy_j=0.0, avg_tokens_per_second=0.0, num_requests=0
    )
    assert "2 requests" in report(alike).text
    assert "The meter saw no energy" in report(save_result(nothing, tmp_path).parent).text


def test_names_are_text_whatever_they_say(tmp_path: Path) -> None:
    name = "<script>alert('x')</script> ${math$ \u202e"
    page = report(
        saved(
            tmp_path,
            model_name=name,
            config_name=name,
            measurement_warnings=[f"code: {name}", name],
            effective_config={"model": name, name: {name: [name]}},
        )
    )
    assert page.text.count("<script>alert('x')</script>") >= 4


@settings(max_examples=15)
@given(result=results)
def test_any_result_has_a_well_formed_report(result: ExperimentResult) -> None:
    read_page(experiment_page(result, Path("/no/files")))


def test_results_of_earlier_releases_have_reports(tmp_path: Path) -> None:
    shutil.copy(RELEASE_2_0 / "result.json", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultFileWarning)  # its time series was not kept
        result, page = load_result(tmp_path), report(tmp_path)
    assert energy_per_token(result) in page.text.replace("\n", "")


@pytest.mark.parametrize("scope", get_args(EnergyScope))
def test_what_the_energy_is_of_is_said_in_the_words_of_the_summary(tmp_path: Path, scope: EnergyScope) -> None:
    breakdown = EnergyBreakdown(raw_j=5273.0, method="hardware_counter", scope=scope)
    assert (
        f"within the window. Metered: {SCOPE_NAMES[scope]}." in report(saved(tmp_path, energy_breakdown=breakdown)).text
    )


def test_energy_of_which_nobody_knows_how_it_was_measured_is_still_measured(tmp_path: Path) -> None:
    text = report(save_result(make_result(energy_breakdown=None), tmp_path).parent).text
    assert "No power over time: what measured takes no power samples." in text
    assert "energy was not measured. The figures" not in text


def test_a_time_series_that_another_program_wrote_is_as_good_as_none(tmp_path: Path) -> None:
    directory = saved(tmp_path, timeseries="timeseries.parquet")
    foreign = pyarrow.table({"timestamp_s": [0.0], "gpu_index": [0], "power_w": [300.0]})
    pyarrow.parquet.write_table(foreign, directory / "timeseries.parquet")
    assert "No power over time" in report(directory).text


def test_the_same_result_gives_the_same_bytes(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    assert write_report(directory).read_bytes() == write_report(directory).read_bytes()


def test_a_report_that_cannot_be_made_is_a_warning_that_says_how_to_make_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = saved(tmp_path)
    (directory / REPORT_FILE).mkdir()  # nothing can be put in its place
    with caplog.at_level(logging.WARNING):
        assert report_on(directory) is None
    assert f"python -m llenergymeasure.results.report {shlex.quote(str(directory))}" in caplog.text
    assert load_result(directory).total_tokens == 49_700


def test_without_matplotlib_a_report_is_missing_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = saved(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as Python itself marks what cannot be imported
    assert report_on(directory) is None
    assert "matplotlib" in caplog.text
    assert sorted(path.name for path in directory.iterdir()) == ["result.json"]


def test_the_summary_names_the_report_once_it_is_there(tmp_path: Path) -> None:
    directory = saved(tmp_path)
    path = directory / "result.json"
    assert "Report" not in render_summary(load_result(path), path)
    write_report(directory)
    assert render_summary(load_result(path), path).endswith(f"Report         {directory / REPORT_FILE}")


def test_a_study_shows_its_configurations_best_first_and_what_each_setting_does(tmp_path: Path) -> None:
    study = saved_study(tmp_path / "study", study_of(range(1, 4)))
    page = report(study)
    cells = re.sub(r"\s+", " ", page.text)
    assert cells.index("bf16 / batch 3") < cells.index("fp32 / batch 3") < cells.index("fp32 / batch 1")
    assert "0.267 ± 0.007 J" in cells  # 0.8 / 3, and t(0.975, 2) = 4.303 standard errors of 1 % / sqrt(3)
    assert "−66.7 %" in cells  # three at a time take a third
    assert "Change against precision = fp32." in cells
    assert "short_measurement_duration" in cells
    assert "more prompts, or measurement.min_duration_seconds; 60 s to publish" in cells
    links = [address for address in page.addresses if address.endswith(REPORT_FILE)]
    assert len(links) == 18
    assert all((study / link).parent.is_dir() for link in links)
    assert "llem run study.yaml" in cells
    assert "the window is shorter than 10 s" in cells
    assert "Enginepytorch" in page.text.replace("\n", "")
    assert "Modelm" in page.text.replace("\n", "")


def test_page_terminal_and_table_state_the_same_figures(tmp_path: Path) -> None:
    directory = saved_study(tmp_path / "study", study_of(range(1, 4)))
    study, page = load_study(directory), report(directory)
    lines = [re.split(r" {2,}", line) for line in render_configurations(study.statistics, 120)]
    rows = pyarrow.parquet.read_table(directory / "results.parquet").to_pylist()
    for entry in study.statistics:
        own = [row for row in rows if row["measurement_config_hash"] == entry.measurement_config_hash]
        for column in ("energy_per_token_j", "tokens_per_second"):
            assert getattr(entry, column).mean == pytest.approx(fmean(row[column] for row in own))
        shown = [shown_energy(entry, False), shown_mean(entry.tokens_per_second)]
        assert [line for line in lines if shown[0] in line and shown[1] in line]
        assert all(figure in page.text for figure in shown)


def test_a_weak_effect_has_ticks_that_differ(tmp_path: Path) -> None:
    def figures(run: PlannedRun) -> ExperimentResult:
        better = 0.997 if run.config.precision == "bf16" else 1.0
        return run_figures(run).model_copy(
            update={"avg_energy_per_token_j": better, "avg_tokens_per_second": 1 / better}
        )

    page = write_report(saved_study(tmp_path / "study", study_of(range(1, 2)), figures)).read_text(encoding="utf-8")
    for drawing in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        if "Effect of precision" in drawing:
            ticks = re.findall(r">([+−-][^<]* %)<", drawing)
            assert ticks
            assert not {"+0 %", "−0 %", "-0 %"} & set(ticks)


def test_a_study_of_which_every_run_failed_says_why(tmp_path: Path) -> None:
    page = report(saved_study(tmp_path / "study", study_of(range(1, 3)), lambda run: None))
    assert page.text.count("No run was completed") == 2
    assert "cannot be read" not in page.text
    assert page.text.count("the <engine> gave up") == 12
    assert "0 of 12 runs have a result" in page.text


def test_a_study_without_its_manifest_and_table_still_has_its_statistics(tmp_path: Path) -> None:
    study = saved_study(tmp_path / "study", study_of(range(1, 3)))
    for name in ("manifest.json", "results.parquet"):
        (study / name).unlink()
    page = report(study)
    assert "bf16 / batch 2" in page.text
    assert "cannot be read" in page.text


def test_estimates_beside_measured_figures_have_a_front_of_their_own(tmp_path: Path) -> None:
    breakdown = make_rich_result().energy_breakdown
    assert breakdown is not None

    def figures(run: PlannedRun) -> ExperimentResult:
        method = "model_estimate" if run.config.precision == "bf16" else "hardware_counter"
        changed = breakdown.model_copy(update={"method": method})
        return run_figures(run).model_copy(update={"energy_breakdown": changed})

    page = report(saved_study(tmp_path / "study", study_of(range(1, 3)), figures))
    assert "2 of 4 configurations are on the front" in page.text
    assert "Violet points are estimates" in page.text
    assert "in all windows, in part estimated" in page.text


def test_a_spread_says_of_which_figure_it_is(tmp_path: Path) -> None:
    def figures(run: PlannedRun) -> ExperimentResult:
        unmeasured = {"avg_energy_per_token_j": None, "total_energy_j": None}
        return run_figures(run).model_copy(update=unmeasured if run.config.precision == "bf16" else {})

    page = report(saved_study(tmp_path / "study", study_of(range(1, 2)), figures))
    assert "J/token, or tokens/s where there is no energy, of each cycle" in page.text


def test_a_thousand_runs_are_a_page_of_less_than_ten_megabytes(tmp_path: Path) -> None:
    study = large_study(tmp_path / "study", study_of(range(1, 168)))
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path = write_report(study)
    assert path.stat().st_size < 2_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 300_000
    read_page(path.read_text(encoding="utf-8"))


def test_the_command_makes_the_reports_of_a_study_and_of_its_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = saved_study(tmp_path / "study", study_of(range(1, 2), cycles=2))
    assert main([str(study)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written[-1] == str(study / REPORT_FILE)
    assert len(written) == 5
    assert all(Path(path).is_file() for path in written)


def test_a_damaged_run_costs_its_own_report_and_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = saved_study(tmp_path / "study", study_of(range(1, 2), cycles=2))
    damaged = sorted(study.glob("*/result.json"))[0]
    damaged.write_text("{")
    assert main([str(study)]) == 1
    told = capsys.readouterr()
    assert told.out.splitlines()[-1] == str(study / REPORT_FILE)
    assert len(told.out.splitlines()) == 4
    assert str(damaged) in told.err


def test_figures_that_cannot_be_drawn_cost_no_other_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def beyond_all_bounds(run: PlannedRun) -> ExperimentResult:
        tiny = run.config.precision == "bf16"
        return run_figures(run).model_copy(update={"avg_tokens_per_second": 1e-300 if tiny else 1e290})

    study = saved_study(tmp_path / "study", study_of(range(1, 2), cycles=1), beyond_all_bounds)
    assert main(["--alone", str(study), str(saved(tmp_path))]) == 1
    told = capsys.readouterr()
    assert f"The report of {study} could not be made: StatisticsError: " in told.err
    assert told.out.count(REPORT_FILE) == 1


def test_a_summary_that_names_places_elsewhere_has_nothing_written_there(tmp_path: Path) -> None:
    elsewhere = saved(tmp_path / "elsewhere")
    study = saved_study(tmp_path / "study", study_of(range(1, 2), cycles=1))
    summary = json.loads((study / "study_summary.json").read_text())
    summary["result_files"][0] = f"../elsewhere/{elsewhere.name}/result.json"
    (study / "study_summary.json").write_text(json.dumps(summary))
    assert main([str(study)]) == 0
    assert not (elsewhere / REPORT_FILE).exists()


def test_the_command_says_why_a_study_that_runs_has_no_report_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = saved_study(tmp_path / "study", study_of(range(1, 2)))
    (study / "study_summary.json").unlink()
    assert main([str(study), "x" * 300]) == 1
    told = capsys.readouterr().err
    assert f"{study} is a study without study_summary.json: it still runs, or was killed." in told
    assert f"llem run --resume {shlex.quote(str(study))}" in told
    assert "xxx: File name too long." in told


def test_the_command_names_what_it_cannot_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = saved(tmp_path)
    (damaged / "result.json").write_text("{")
    assert main([str(tmp_path), str(damaged), str(saved(tmp_path))]) == 1
    told = capsys.readouterr()
    assert f"{tmp_path} holds neither result.json nor study_summary.json" in told.err
    assert "It was cut short or damaged." in told.err
    assert told.out.count(REPORT_FILE) == 1
    with pytest.raises(PersistenceError, match="holds neither"):
        write_report(tmp_path)
