"""Where each of the user's settings acts: what changes when it is set, in the file or by its variable.

What needs a real engine, a real meter or a terminal is in tests/integration/test_settings_effects_*.
"""

from __future__ import annotations

import http.server
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster_fakes import A100, H100, FakeCluster, node
from effects_bench import ExperimentBench
from fakes import StepEngine, VirtualClock
from llenergymeasure._api import study_parent
from llenergymeasure.cli.app import run_app
from llenergymeasure.cli.dry_run import dry_run_experiment
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.config.user_config import UserConfig, load_user_config
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DriverMissingError, GpuDriver
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.preflight import Ready, run_preflight
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.exceptions import PreFlightError
from llenergymeasure.results.aggregation import aggregate_results
from llenergymeasure.results.summary import render_summary
from llenergymeasure.runners.cluster import Node, NodeLostError
from llenergymeasure.runners.docker import container_for
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.launchers import runs_here
from llenergymeasure.runners.local import emission_factors, energy_backend_name
from llenergymeasure.runners.supervise import Interrupt
from llenergymeasure.study.execute import StudyPlace, execute_study
from llenergymeasure.study.plan import GapStarted, StudyEvent, StudyWarning
from llenergymeasure.study.runner import StudyHost, StudyRunner, StudyStoppedError
from llenergymeasure.study.spread import Watch
from study_fakes import ScriptedLauncher, Stage, study_of


def machine(**sections: Any) -> UserConfig:
    return UserConfig.model_validate(sections)


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own configuration file, where every command looks for it."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "llenergymeasure" / "config.yaml"
    path.parent.mkdir(parents=True)
    return path


def no_driver() -> GpuDriver:
    raise DriverMissingError("no NVIDIA driver")


# --- output ------------------------------------------------------------------------------------------------------


def test_results_dir_is_where_an_experiment_lands(
    user_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user_file.write_text(f"output: {{results_dir: {tmp_path}/mine}}\n")
    prompts = ExperimentBench(tmp_path).prompts
    run_app(["run", "-m", "somebody/model", "--device", "cpu", "-d", str(prompts), "-n", "1", "--dry-run"])
    assert f"{tmp_path}/mine" in capsys.readouterr().out


def test_results_dir_is_where_a_study_lands_that_names_no_place() -> None:
    settings = machine(output={"results_dir": "/data/results"})
    assert study_parent(study_of("a", "b"), settings) == Path("/data/results")
    named = study_of("a")
    own = named.model_copy(update={"experiments": [ExperimentConfig(model="a", output_dir="/elsewhere")]})
    assert study_parent(own, settings) == Path("/elsewhere")


def test_model_cache_dir_is_where_a_models_files_are_looked_for(tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--somebody--model" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    (snapshot / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 100, **shape}))
    header = json.dumps({"w": {"dtype": "BF16", "shape": [1000, 1000], "data_offsets": [0, 0]}}).encode()
    (snapshot / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123abc")

    def weights_mb(settings: UserConfig) -> float | None:
        config = ExperimentConfig.model_validate({"model": "somebody/model", "dataset": {"synthetic": {"n": 1}}})
        host = Host({"HF_HOME": str(tmp_path / "empty")}, no_driver)
        return dry_run_experiment(config, settings, host).vram.weights_mb

    assert weights_mb(machine(output={"model_cache_dir": str(tmp_path / "hf")})) == pytest.approx(2.0)
    assert weights_mb(UserConfig()) is None


class Listener(http.server.BaseHTTPRequestHandler):
    """Takes what is posted; answers with `status`."""

    status = 200
    received: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        type(self).received.append(json.loads(body))
        self.send_response(type(self).status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def listener() -> Iterator[str]:
    """The address of a server that takes a webhook."""
    pytest.importorskip("httpx", reason="webhooks need httpx")
    Listener.status, Listener.received = 200, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/t0ken"
    server.shutdown()
    thread.join()
    server.server_close()


def run_study(directory: Path, settings: UserConfig) -> list[StudyEvent]:
    events: list[StudyEvent] = []
    launcher = ScriptedLauncher(VirtualClock())
    place = StudyPlace(parent=directory)
    execute_study(study_of("a", "b"), place, settings, lambda result: None, events.append, launcher)
    return events


def test_webhook_url_gets_the_summary_when_a_study_ends(listener: str, tmp_path: Path) -> None:
    run_study(tmp_path, machine(output={"webhook_url": listener}))
    (message,) = Listener.received
    assert (message["event"], message["status"]) == ("study", "completed")
    assert (message["study"]["summary"]["completed"], message["study"]["name"]) == (2, "demo")


def test_without_a_webhook_url_nobody_is_called(listener: str, tmp_path: Path) -> None:
    run_study(tmp_path, UserConfig())
    assert Listener.received == []


def test_a_webhook_that_refuses_costs_the_study_nothing_and_keeps_its_secret(
    listener: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Listener.status = 403
    with caplog.at_level(logging.WARNING):
        run_study(tmp_path, machine(output={"webhook_url": listener}))
    assert (next(tmp_path.glob("demo_*")) / "study_summary.json").exists()
    assert "did not reach 127.0.0.1: the server answered 403" in caplog.text
    assert "t0ken" not in caplog.text


# --- runners -----------------------------------------------------------------------------------------------------


def preflight(settings: UserConfig, tmp_path: Path, **fields: Any) -> Ready:
    host = Host({}, no_driver, root=tmp_path / "no-powercap", clock=VirtualClock())
    config = ExperimentBench(tmp_path).config(**fields)
    engine = StepEngine(VirtualClock(), used_devices=(CPU_DEVICE,), name=config.backend)
    return run_preflight(config, engine, settings, energy_backend_name(config, settings), host)


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
def test_a_singularity_runner_is_refused_plainly_for_its_own_backend_alone(backend: str, tmp_path: Path) -> None:
    settings = machine(runners={backend: "singularity:/images/1.sif"})
    refused = rf"runners\.{backend}: .*the singularity runner is not supported yet by this version"
    with pytest.raises(PreFlightError, match=refused):
        preflight(settings, tmp_path, backend=backend)
    other = "vllm" if backend == "pytorch" else "pytorch"
    preflight(settings, tmp_path, backend=other)


@pytest.mark.parametrize("backend", ["pytorch", "vllm", "tensorrt"])
def test_the_runner_variable_beats_the_file(backend: str, user_file: Path, tmp_path: Path) -> None:
    user_file.write_text(f"runners: {{{backend}: 'docker:image:1'}}\n")
    variable, experiment = f"LLEM_RUNNER_{backend.upper()}", ExperimentBench(tmp_path).config(backend=backend)
    asked = [load_user_config(environ=environ) for environ in ({}, {variable: "local"}, {variable: "docker:other"})]
    assert [runs_here(settings, backend) for settings in asked] == [False, True, False]
    no_docker = Host({"PATH": str(tmp_path)}, no_driver)
    for settings, image in ((asked[0], "image:1"), (asked[2], "other")):
        with pytest.raises(PreFlightError, match=rf"runners\.{backend}: docker:{image}: Docker is not installed"):
            container_for([experiment], settings, no_docker)


# --- measurement -------------------------------------------------------------------------------------------------


def test_energy_backend_is_used_where_the_experiment_says_auto(tmp_path: Path) -> None:
    settings = machine(measurement={"energy_backend": "rapl"})
    with pytest.raises(PreFlightError, match=r"rapl does not work here"):
        preflight(settings, tmp_path)
    preflight(UserConfig(), tmp_path)
    assert energy_backend_name(ExperimentConfig(model="m"), settings) == "rapl"
    own = ExperimentConfig.model_validate({"model": "m", "energy": {"backend": "codecarbon"}})
    assert energy_backend_name(own, settings) == "codecarbon"
    off = ExperimentConfig.model_validate({"model": "m", "energy": {"backend": None}})
    assert energy_backend_name(off, settings) is None


@pytest.fixture
def measured(tmp_path: Path) -> Any:
    """Makes the result of a run that spent 80 J, on a machine with these settings."""
    record = ExperimentBench(tmp_path).run().record

    def on(settings: UserConfig) -> ExperimentResult:
        return aggregate_results("id", [record], factors=emission_factors(settings))

    return on


KWH = 80.0 / 3.6e6  # the run takes 0.4 s at 200 W


def test_without_factors_there_is_neither_co2_nor_cost(measured: Any) -> None:
    result = measured(UserConfig())
    assert result.total_energy_j == pytest.approx(80.0)
    assert (result.co2_g, result.cost) == (None, None)
    assert "Footprint" not in render_summary(result)


def test_carbon_intensity_gives_co2(measured: Any) -> None:
    result = measured(machine(measurement={"carbon_intensity_gco2_kwh": 400.0}))
    assert result.co2_g == pytest.approx(KWH * 400)
    assert result.carbon_intensity_gco2_kwh == 400.0
    assert result.cost is None
    assert "g CO2e, 400 g/kWh" in render_summary(result)


def test_datacenter_pue_multiplies_co2_and_cost_and_leaves_energy_alone(measured: Any) -> None:
    factors = {"carbon_intensity_gco2_kwh": 400.0, "electricity_price_kwh": 0.5}
    result = measured(machine(measurement={**factors, "datacenter_pue": 1.5}))
    assert result.co2_g == pytest.approx(1.5 * KWH * 400)
    assert result.cost == pytest.approx(1.5 * KWH * 0.5)
    assert result.pue == 1.5
    assert result.total_energy_j == pytest.approx(80.0)
    assert "PUE 1.5" in render_summary(result)


def test_electricity_price_gives_the_cost_in_the_currency(measured: Any) -> None:
    result = measured(machine(measurement={"electricity_price_kwh": 0.5, "currency": "EUR"}))
    assert result.cost == pytest.approx(KWH * 0.5)
    assert (result.currency, result.co2_g) == ("EUR", None)
    assert "EUR" in render_summary(result)
    assert measured(machine(measurement={"electricity_price_kwh": 0.5})).currency == "USD"


def test_the_variables_of_carbon_and_pue_beat_the_file(measured: Any, user_file: Path) -> None:
    user_file.write_text("measurement: {carbon_intensity_gco2_kwh: 400, datacenter_pue: 1.1}\n")
    environ = {"LLEM_CARBON_INTENSITY": "20", "LLEM_DATACENTER_PUE": "2"}
    assert measured(load_user_config(environ={})).co2_g == pytest.approx(1.1 * KWH * 400)
    assert measured(load_user_config(environ=environ)).co2_g == pytest.approx(2 * KWH * 20)


# --- how the command line talks ----------------------------------------------------------------------------------


def test_verbosity_of_the_settings_is_that_of_the_flags(
    user_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.yaml"
    model = "model: builtin/tiny-llama, pytorch: {device: cpu}"
    study.write_text(f"{{{model}, dataset: {{synthetic: {{n: 1}}}}, sweep: {{random_seed: {list(range(60))}}}}}\n")

    def preview(verbosity: str, *flags: str) -> str:
        user_file.write_text(f"ui: {{verbosity: {verbosity}}}\n")
        assert run_app(["run", str(study), "--dry-run", *flags]) == 0
        return capsys.readouterr().out

    def progress(verbosity: str) -> str:
        user_file.write_text(f"ui: {{verbosity: {verbosity}}}\n")
        run_app(["run", "-m", "/no/model", "-b", "tensorrt", "-d", str(ExperimentBench(tmp_path).prompts), "-n", "1"])
        return capsys.readouterr().err

    assert "--verbose lists all" in preview("standard")
    assert "--verbose lists all" not in preview("verbose")
    assert "--verbose lists all" in preview("verbose", "--quiet")  # a flag beats the setting
    assert "Experiment:" in progress("standard")
    assert "Experiment:" not in progress("quiet")
    assert "Traceback" not in progress("standard")
    assert "Traceback" in progress("verbose")


# --- gaps --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config_s", "cycle_s"), [(60.0, 300.0), (7.0, 11.0), (0.0, 0.0)])
def test_gaps_of_the_machine_are_waited_where_the_study_names_none(
    tmp_path: Path, config_s: float, cycle_s: float
) -> None:
    stage = Stage(tmp_path)
    settings = machine(execution={"config_gap_seconds": config_s, "cycle_gap_seconds": cycle_s})
    study = study_of("a", "b", cycles=2, cycle_order="interleaved", config_gap_seconds=None, cycle_gap_seconds=None)
    began_s = stage.clock.now()
    stage.runner(study, settings).run()
    runs_s = 4 * stage.launcher.duration_s
    assert stage.clock.now() - began_s - runs_s == pytest.approx(2 * config_s + cycle_s)
    assert [gap.duration_s for gap in stage.of(GapStarted)] == [s for s in (config_s, cycle_s, config_s) if s]


# --- cluster -----------------------------------------------------------------------------------------------------


def spread(tmp_path: Path, settings: UserConfig, cluster: FakeCluster, asked: str | None = None) -> None:
    place = StudyPlace(tmp_path, cluster=asked)
    execute_study(study_of("a", "b"), place, settings, lambda result: None, connect=cluster.connect)


@pytest.mark.parametrize(("asked", "used"), [(None, "ray://head:10001"), ("auto", "auto")])
def test_cluster_address_is_where_a_study_goes_that_names_no_other(
    tmp_path: Path, asked: str | None, used: str
) -> None:
    cluster = FakeCluster([node("x")])
    spread(tmp_path, machine(cluster={"address": "ray://head:10001"}), cluster, asked)
    assert cluster.addresses == [used]
    assert [model for _, model in cluster.begun] == ["a", "b"]


def test_cluster_hardware_keeps_a_study_on_one_kind_of_gpu(tmp_path: Path) -> None:
    cluster = FakeCluster([node("x", gpu=A100), node("y", gpu=H100)])
    settings = machine(cluster={"address": "auto", "hardware": ["NVIDIA H100"]})
    spread(tmp_path, settings, cluster)
    assert {name for name, _ in cluster.begun} == {"y"}
    with pytest.raises(PreFlightError, match=r"cluster.hardware names \(H200\), and the cluster has x: 1"):
        spread(tmp_path, machine(cluster={"address": "auto", "hardware": ["H200"]}), cluster)


def test_max_wait_is_how_long_a_study_waits_for_nodes_that_are_gone(tmp_path: Path) -> None:
    def act(where: Node, job: Job, interrupt: Interrupt) -> None:
        cluster.there = []
        raise NodeLostError("preempted.")

    def observe(event: StudyEvent) -> None:
        if isinstance(event, StudyWarning) and "No node" in event.message:
            assert "Waiting for one, 2 h 00 m at most (cluster.max_wait_seconds of the user settings)." in event.message
            clock.sleep(7201.0)

    cluster, clock = FakeCluster([node("spot")], act), VirtualClock()
    settings, watch = machine(cluster={"max_wait_seconds": 7200}), Watch(look_s=0.0, tell_s=0.0)
    host = StudyHost(ScriptedLauncher(clock), clock=clock, observer=observe, cluster=cluster, watch=watch)
    with pytest.raises(StudyStoppedError, match=r"no node came for 2 h 00 m .* Go on with: llem run --resume"):
        StudyRunner(study_of("a"), tmp_path, settings, host).run()
