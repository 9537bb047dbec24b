"""Settings and flags that only a real run can show: where it lands, what it prints, what measured it.

Three runs of the built-in model, each in a process of its own as a user starts it; the tests look at what they left.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from llenergymeasure.domain.experiment import ExperimentResult

pytestmark = pytest.mark.skipif(
    not all(find_spec(package) for package in ("torch", "transformers", "codecarbon")),
    reason="needs the engine, and codecarbon, the energy backend that works on any machine",
)

EXPERIMENT = """
model: builtin/tiny-llama
dataset: {synthetic: {n: 2, input_len: 8, output_len: 4}}
pytorch: {device: cpu, batch_size: 2}
warmup: {enabled: false}
baseline: {enabled: false}
"""
SETTINGS = """
output: {results_dir: by-setting}
measurement:
  energy_backend: codecarbon
  carbon_intensity_gco2_kwh: 400
  datacenter_pue: 1.5
  electricity_price_kwh: 0.3
  currency: EUR
ui: {verbosity: quiet}
"""


@dataclass(frozen=True)
class Done:
    """A finished command and the directory it ran in."""

    code: int
    out: str
    err: str
    directory: Path

    def result(self, where: str) -> ExperimentResult:
        (path,) = (self.directory / where).glob("*/result.json")
        return ExperimentResult.from_json(path)


class Machine:
    """A directory to work in, with the user's settings beside it."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.directory = root / "work"
        self.directory.mkdir()
        self._config_home = root / "config"
        self._cache = cache
        (self.directory / "experiment.yaml").write_text(EXPERIMENT)

    def settings(self, text: str) -> None:
        path = self._config_home / "llenergymeasure" / "config.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)

    def run(self, *command: str, **variables: str) -> Done:
        own = {"XDG_CONFIG_HOME": str(self._config_home), "XDG_CACHE_HOME": str(self._cache), "HF_HUB_OFFLINE": "1"}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LLEM_")}
        done = subprocess.run(
            [sys.executable, *command],
            cwd=self.directory,
            env={**environment, **own, **variables},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Done(done.returncode, done.stdout, done.stderr, self.directory)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model is made once for all runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def by_settings(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Done:
    """A run under the user's settings, one of which a variable beats."""
    machine = Machine(tmp_path_factory.mktemp("settings"), cache)
    machine.settings(SETTINGS)
    command = ("-m", "llenergymeasure", "run", "experiment.yaml", "--export-csv")
    return machine.run(*command, LLEM_CARBON_INTENSITY="50")


@pytest.fixture(scope="module")
def by_flags(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Done:
    """A run without settings, directed by flags."""
    machine = Machine(tmp_path_factory.mktemp("flags"), cache)
    command = ("-m", "llenergymeasure", "run", "experiment.yaml", "--output", "by-flag", "--json", "--verbose")
    return machine.run(*command)


LIBRARY = """
import llenergymeasure, json
result = llenergymeasure.run_experiment("experiment.yaml", energy={"backend": None})
print(json.dumps([result.total_energy_j, result.output_tokens, result.measurement_warnings]))
kept = llenergymeasure.run_experiment("experiment.yaml", energy={"backend": None}, output_dir="by-field",
                                      measurement={"save_outputs": True})
"""


@pytest.fixture(scope="module")
def by_library(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Done:
    """Two runs from Python: one that names no place, one that does; energy is switched off."""
    machine = Machine(tmp_path_factory.mktemp("library"), cache)
    machine.settings(SETTINGS)
    return machine.run("-c", LIBRARY)


def names_in(done: Done) -> set[str]:
    return {path.name for path in done.directory.iterdir()}


# --- where results go --------------------------------------------------------------------------------------------


def test_results_dir_of_the_settings_takes_a_run_of_the_command_line(by_settings: Done) -> None:
    assert by_settings.code == 0, by_settings.err
    assert names_in(by_settings) == {"experiment.yaml", "by-setting"}
    assert by_settings.result("by-setting").output_tokens == 8


def test_output_flag_beats_the_settings_and_the_default(by_flags: Done) -> None:
    assert by_flags.code == 0, by_flags.err
    assert names_in(by_flags) == {"experiment.yaml", "by-flag"}


def test_output_dir_of_the_experiment_is_the_only_reason_for_the_library_to_write(by_library: Done) -> None:
    assert by_library.code == 0, by_library.err
    assert names_in(by_library) == {"experiment.yaml", "by-field"}
    (directory,) = (by_library.directory / "by-field").glob("*/")
    assert "outputs.jsonl" in {path.name for path in directory.iterdir()}
    assert len(list((by_library.directory / "by-field").glob("*/result.json"))) == 1


# --- what measures, and what it means ----------------------------------------------------------------------------


def test_energy_backend_of_the_settings_measures(by_settings: Done) -> None:
    breakdown = by_settings.result("by-setting").energy_breakdown
    assert breakdown is not None
    assert breakdown.meter.startswith("codecarbon")


def test_energy_backend_null_measures_no_energy_at_all(by_library: Done) -> None:
    energy_j, output_tokens, warnings = json.loads(by_library.out.splitlines()[0])
    assert (energy_j, output_tokens) == (None, 8)
    assert not any(warning.startswith("energy_unavailable") for warning in warnings)


def test_factors_of_the_settings_become_co2_and_cost_and_the_variable_beats_the_file(by_settings: Done) -> None:
    result = by_settings.result("by-setting")
    assert result.total_energy_j is not None
    kwh = result.total_energy_j / 3.6e6
    assert result.co2_g == pytest.approx(kwh * 1.5 * 50)
    assert result.cost == pytest.approx(kwh * 1.5 * 0.3)
    assert (result.currency, result.pue, result.carbon_intensity_gco2_kwh) == ("EUR", 1.5, 50.0)
    assert "Footprint" in by_settings.out


def test_without_factors_a_run_has_neither(by_flags: Done) -> None:
    result = by_flags.result("by-flag")
    assert (result.co2_g, result.cost) == (None, None)


# --- what is printed ---------------------------------------------------------------------------------------------


def test_verbosity_quiet_of_the_settings_leaves_the_summary_alone(by_settings: Done) -> None:
    assert "Throughput" in by_settings.out
    assert "Measuring" not in by_settings.err
    assert "Pre-flight" not in by_settings.err


def test_json_puts_the_result_on_stdout_and_nothing_else(by_flags: Done) -> None:
    printed: dict[str, Any] = json.loads(by_flags.out)
    assert printed["experiment_id"] == by_flags.result("by-flag").experiment_id


def test_verbose_tells_the_log_beside_the_progress(by_flags: Done) -> None:
    assert "Measuring" in by_flags.err
    assert " INFO llenergymeasure" in by_flags.err or " DEBUG llenergymeasure" in by_flags.err


def test_export_csv_lies_beside_the_result(by_settings: Done, by_flags: Done) -> None:
    (table,) = by_settings.directory.glob("by-setting/*/*.csv")
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["experiment_id"] == by_settings.result("by-setting").experiment_id
    assert list(by_flags.directory.glob("by-flag/*/*.csv")) == []
