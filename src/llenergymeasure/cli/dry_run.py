"""`llem run --dry-run`, which loads nothing: what an experiment would do and need; of a study its grid, what is
skipped and why, the order, and how long it takes at the least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from llenergymeasure.cli.cluster_preview import cluster_lines
from llenergymeasure.config.grid import describe_skipped
from llenergymeasure.config.models import ExperimentConfig, StudyConfig, experiment_title
from llenergymeasure.config.same_work import partial_batch
from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.core.backends.registry import DeviceChoice, package_versions
from llenergymeasure.core.energy.meter import NoEnergyBackend
from llenergymeasure.core.energy.select import BackendName, select_energy_backend
from llenergymeasure.core.gpu.driver import CPU_DEVICE, DeviceId, Gpu, GpuDriverError, free_memory_mb
from llenergymeasure.core.host.host import Host
from llenergymeasure.core.model.memory import OVERHEAD, VramEstimate, estimate_vram, memory_text
from llenergymeasure.core.model.source import fetch_model_config
from llenergymeasure.datasets.loader import load_raw_prompts
from llenergymeasure.datasets.sources import HUB_PREFIX, parse_hub_spec
from llenergymeasure.domain.readable import counted
from llenergymeasure.exceptions import BackendError, ConfigError, EnergyError
from llenergymeasure.results.summary import duration
from llenergymeasure.runners.cluster import Node
from llenergymeasure.runners.launchers import device_choice_of, runs_here
from llenergymeasure.runners.local import energy_backend_name
from llenergymeasure.study.gaps import gaps_of
from llenergymeasure.study.plan import PlannedRun, known_waits, plan_runs
from llenergymeasure.study.resume import Resumption

LABEL_WIDTH: Final = 13

MAX_LISTED: Final = 50
"""Configurations, skipped points and runs that are listed unless all are asked for."""

UNKNOWN_TIME: Final = "loading and generating come on top; how long they take is not known before a first run"


@dataclass(frozen=True, slots=True)
class DryRunReport:
    """What an experiment would do and need.

    Args:
        engine: Versions of its engine's packages, or why it cannot be used here, or the image that has it.
        prompts: Where its prompts come from, and whether that was checked.
        device: Where its engine was told to run, or has to; `None`: on a GPU.
        gpus: The GPUs it would use; empty on the CPU, and where there are none.
        energy_backend: What is to measure its energy; `None`: nothing.
        meter: What that comes to here, with a reading as proof; `None`: nobody has looked.
    """

    config: ExperimentConfig
    engine: str
    prompts: str
    vram: VramEstimate
    device: DeviceChoice | None
    gpus: tuple[Gpu, ...]
    device_note: str | None
    energy_backend: BackendName | None
    meter: str | None = None


def dry_run_experiment(
    config: ExperimentConfig,
    machine: UserConfig,
    host: Host | None = None,
    *,
    versions_of: Callable[[str], Mapping[str, str]] = package_versions,
    fetch_config: Callable[[str, str | None, Mapping[str, str]], Mapping[str, Any]] = fetch_model_config,
    find_meter: Callable[[BackendName, Sequence[DeviceId], Host], str] | None = None,
) -> DryRunReport:
    """Find out what `config` would do. Loads no model and needs neither a GPU nor an engine.

    The Hub is asked for one small file at most: the configuration of a model that is not on this machine.

    Args:
        fetch_config: Asks the Hub for the configuration of a model at a revision, given the environment.
        find_meter: Tells what an energy backend comes to on some devices, see `meter_here`; `None`: nobody looks.
    """
    host = host or Host()
    runner = machine.runners.of(config.backend)
    device = device_choice_of(config, machine)
    gpus, device_note = _devices(config, device, host)
    wanted = energy_backend_name(config, machine)
    devices = tuple(gpu.uuid for gpu in gpus) or _cpu_if_used(device)
    return DryRunReport(
        config=config,
        engine=_engine(config.backend, versions_of) if runs_here(machine, config.backend) else f"in {runner}",
        prompts=_prompts(config),
        vram=estimate_vram(
            config,
            environ=host.environ,
            cache_home=Path(machine.output.model_cache_dir),
            fetch_config=lambda model, revision: fetch_config(model, revision, host.environ),
        ),
        device=device,
        gpus=gpus,
        device_note=device_note,
        energy_backend=wanted,
        meter=None if wanted is None or not devices or find_meter is None else find_meter(wanted, devices, host),
    )


def meter_here(name: BackendName, devices: Sequence[DeviceId], host: Host) -> str:
    """What an energy backend comes to on these devices: the meter, with a reading that says whether it estimates."""
    try:
        meter = select_energy_backend(name, devices, host=host)
        if isinstance(meter, NoEnergyBackend):
            return "not measured: nothing here can"
        return f"{meter.name}: {meter.prove()}"
    except EnergyError:  # pre-flight tells why
        return f"{name}: does not work here"


def render_dry_run(report: DryRunReport) -> str:
    """The report as text."""
    config = report.config
    on_cpu = not report.gpus and bool(_cpu_if_used(report.device))
    memory = "Memory" if on_cpu or config.backend not in BACKENDS else "GPU memory"
    entries = {
        "Config": ["valid"],
        "Engine": [report.engine],
        "Prompts": [report.prompts],
        "Batches": list(filter(None, [partial_batch(config)])),
        "Tokens": [_tokens(config)],
        memory: _memory(report),
        "Device": [] if report.device_note is None else [report.device_note],
        "Energy": [report.meter or _energy(report.energy_backend)],
        "Time": _time(config),
        "Results": [config.output_dir or "not saved"],
    }
    lines = [f"Dry run: {experiment_title(config)}"]
    for label, said in entries.items():
        lines += [f"  {'' if index else label:<{LABEL_WIDTH}}{line}" for index, line in enumerate(said)]
    return "\n".join([*lines, "Nothing was run."])


def render_study_preview(
    study: StudyConfig,
    machine: UserConfig,
    *,
    list_all: bool = False,
    host: Host | None = None,
    begun: Resumption | None = None,
    nodes: Sequence[Node] | None = None,
) -> str:
    """What a study would do.

    Args:
        list_all: Whether to list every configuration, also of a large study.
        begun: What an earlier execution has left; `None`: there was none.
        nodes: Those of the cluster that it is spread over; `None`: it stays on this machine.
    """
    host = host or Host()
    most = len(study.experiments) + len(study.skipped_configs) if list_all else MAX_LISTED
    runs = plan_runs(study)
    kept = set() if begun is None else {(entry.config_hash, entry.cycle) for entry in begun.kept}
    left = [run for run in runs if run.key not in kept]
    execution = study.execution
    lines = [
        f"Dry run: study {study.name or '(no name)'}, design {study.study_design_hash}",
        f"  {counted(len(study.experiments), 'configuration')} × {counted(execution.n_cycles, 'cycle')}, "
        f"{execution.cycle_order}: {counted(len(runs), 'run')}",
        *(
            []
            if begun is None
            else [f"  {len(runs) - len(left)} of them are finished, {len(left)} left", *begun.warnings]
        ),
        "",
        "Configurations",
        *_limited(_configurations(study.experiments[:most], runs, machine, host), len(study.experiments), most),
    ]
    if study.skipped_configs:
        lines += ["", f"Skipped points of the grid, because not valid: {len(study.skipped_configs)}"]
        lines += skipped_lines(study, most)
    if partial := list(dict.fromkeys(filter(None, map(partial_batch, study.experiments)))):
        lines += [
            "",
            "Batches that are not filled",
            *_limited((f"  {told}" for told in partial[:most]), len(partial), most),
        ]
    lines += ["", f"Order          {_order(study, left)}", *_study_time(study, left, machine)]
    lines += [] if nodes is None else cluster_lines(study, left, machine, nodes)
    lines.append("Nothing was run.")
    return "\n".join(lines)


def skipped_lines(study: StudyConfig, most: int = MAX_LISTED) -> list[str]:
    """The points of a study that are not valid and why, alike ones in one line."""
    told = describe_skipped(study.skipped_configs)
    return list(_limited((f"  ✗ {line}" for line in told[:most]), len(told), most))


def _engine(backend: str, versions_of: Callable[[str], Mapping[str, str]]) -> str:
    try:
        return ", ".join(f"{package} {version}" for package, version in versions_of(backend).items())
    except BackendError as error:
        return f"not usable here: {error}"


def _prompts(config: ExperimentConfig) -> str:
    """Where the prompts come from; one on the Hub is not looked up: that would mean to fetch its rows."""
    dataset = config.dataset
    try:
        if isinstance(dataset, str) and dataset.startswith(HUB_PREFIX) and not parse_hub_spec(dataset).is_local:
            return f"{config.n:,} of {dataset} (not looked up)"
        load_raw_prompts(dataset, config.n)
    except ConfigError as error:
        return f"not usable: {error}"
    return f"{config.n:,} of {dataset if isinstance(dataset, str) else 'synthetic prompts'}"


def _cpu_if_used(device: DeviceChoice | None) -> tuple[DeviceId, ...]:
    """The CPU, where a run without a GPU would be on it; else nothing."""
    return (CPU_DEVICE,) if device in ("cpu", "auto") else ()


def gpus_here(host: Host) -> tuple[Gpu, ...]:
    """The GPUs that a run would see; none where they cannot be asked."""
    try:
        return host.visible_gpus()
    except GpuDriverError:
        return ()


def _devices(config: ExperimentConfig, device: DeviceChoice | None, host: Host) -> tuple[tuple[Gpu, ...], str | None]:
    """The GPUs that the run would use, and what to know about them."""
    if config.backend not in BACKENDS:
        return (), f"those that the {config.backend} engine takes"
    if device == "cpu":
        who = f"{config.backend}.device" if config.backend_config.device_choice == device else "the engine's build"
        return (), f"the CPU, as {who} says"
    gpus = gpus_here(host)
    if not gpus and device == "auto":
        return (), "the CPU: there is no GPU here"
    if not gpus:
        flag = " (or pass --device cpu)" if "device" in type(config.backend_config).model_fields else ""
        return (), f"there is no GPU here: run it on a machine that has one{flag}"
    wanted = config.backend_config.gpu_count(len(gpus))
    if wanted > len(gpus):
        return gpus, f"the config asks for {wanted} GPUs, and this machine shows {len(gpus)}"
    return gpus[:wanted], None


def _tokens(config: ExperimentConfig) -> str:
    most_in, most_out = config.n * config.max_input_tokens, config.n * config.max_output_tokens
    return (
        f"at most {most_in:,} in ({config.n:,} × {config.max_input_tokens:,}) "
        f"and {most_out:,} out ({config.n:,} × {config.max_output_tokens:,})"
    )


def _memory(report: DryRunReport) -> Iterator[str]:
    vram = report.vram
    if vram.total_mb is not None and vram.weights_mb is not None and vram.kv_cache_mb is not None:
        yield (
            f"about {memory_text(vram.total_mb)}: weights {memory_text(vram.weights_mb)}, "
            f"key-value cache {memory_text(vram.kv_cache_mb)}, "
            f"and {OVERHEAD:.0%} in reserve{memory_verdict(vram.total_mb, report.config, report.gpus)}"
        )
    elif report.config.backend not in BACKENDS:
        yield f"not known: what the {report.config.backend} engine needs, it alone knows"
        return
    elif vram.weights_mb is not None:
        verdict = memory_verdict(vram.weights_mb, report.config, report.gpus)
        yield f"at least {memory_text(vram.weights_mb)} for the weights{verdict}"
    yield from vram.notes


def memory_verdict(needed_mb: float, config: ExperimentConfig, gpus: Sequence[Gpu]) -> str:
    """Whether what `config` needs fits in what is free on `gpus`; nothing where that is not known."""
    free_mb = free_memory_mb(gpus, one_copy_each=config.backend_config.processes > 1)
    if free_mb is None:
        return ""
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus))
    return f"; {'fits' if needed_mb <= free_mb else 'DOES NOT FIT'} in the {memory_text(free_mb)} free on {names}"


def _energy(backend: str | None) -> str:
    if backend is None:
        return "not measured (energy.backend: null)"
    return "auto: the best energy backend that works when it runs" if backend == "auto" else backend


def _time(config: ExperimentConfig) -> Iterator[str]:
    waits = dict(known_waits(config))
    if waits:
        parts = ", ".join(f"{seconds:g} s {what}" for what, seconds in waits.items())
        yield f"at least {_duration(sum(waits.values()))} of waiting: {parts}"
    yield UNKNOWN_TIME


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} m {rest} s" if minutes else f"{rest} s"


def _configurations(
    experiments: Sequence[ExperimentConfig], runs: Sequence[PlannedRun], machine: UserConfig, host: Host
) -> Iterator[str]:
    gpus = gpus_here(host)
    titles = {id(run.config): run.title for run in runs}
    for number, config in enumerate(experiments, start=1):
        title = titles.get(id(config), experiment_title(config))
        yield f"  {number:>4}  {title}{_memory_needed(config, machine, gpus, host)}"


def _memory_needed(config: ExperimentConfig, machine: UserConfig, gpus: Sequence[Gpu], host: Host) -> str:
    """The GPU memory that `config` needs; nothing on the CPU, and where it is not known."""
    if device_choice_of(config, machine) == "cpu":
        return ""
    vram = estimate_vram(config, environ=host.environ, cache_home=Path(machine.output.model_cache_dir))
    if vram.total_mb is None:
        return ""
    used = gpus[: config.backend_config.gpu_count(len(gpus))] if gpus else ()
    return f"  (GPU memory ≈ {memory_text(vram.total_mb)}{memory_verdict(vram.total_mb, config, used)})"


def _limited(lines: Iterator[str], total: int, most: int) -> Iterator[str]:
    yield from lines
    if total > most:
        yield f"        … and {total - most} more (--verbose lists all)"


def _order(study: StudyConfig, runs: Sequence[PlannedRun]) -> str:
    """The first runs by the numbers of their configurations."""
    numbers = {id(config): number for number, config in enumerate(study.experiments, start=1)}
    shown = [str(numbers.get(id(run.config), "?")) for run in runs[:20]]
    return (" ".join(shown) or "nothing is left to do") + (" …" if len(runs) > len(shown) else "")


def _study_time(study: StudyConfig, runs: Sequence[PlannedRun], machine: UserConfig) -> Iterator[str]:
    gaps = gaps_of(study.execution, machine)
    gap_s = sum(gaps.between(before, after)[1] for before, after in pairwise(runs))
    waits = [dict(known_waits(run.config)) for run in runs]
    baseline_s = max((wait.pop("baseline", 0.0) for wait in waits), default=0.0)  # measured once, then shared
    wait_s = baseline_s + sum(seconds for wait in waits for seconds in wait.values())
    yield f"Time           at least {duration(gap_s + wait_s)}: {duration(gap_s)} of gaps, {duration(wait_s)} of waits"
    yield f"               {UNKNOWN_TIME}"
