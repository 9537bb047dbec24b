"""Callers that nobody thinks of: closed streams, no home, threads, forks, pools, event loops, other directories."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llem_process import Workplace, llem_command
from namespaces import USER, as_somebody

pytest.importorskip("transformers", reason="needs the pytorch extra")

HEAD = """
import asyncio, json, logging, multiprocessing, os, random, signal, sys, threading, time, warnings
from pathlib import Path
import llenergymeasure as llem
from llenergymeasure.exceptions import LLEMError

fields = {
    "model": "builtin/tiny-llama", "n": 2, "max_output_tokens": 8, "dataset": "prompts.jsonl",
    "pytorch": {"device": "cpu"}, "baseline": {"enabled": False}, "energy": {"backend": None},
    "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
}
config = llem.ExperimentConfig(**fields)
study = llem.StudyConfig(experiments=[config])
report = {}

def leave():
    Path("report.json").write_text(json.dumps(report))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def workplace_of(directory: Path, home: Path) -> Workplace:
    return Workplace(directory / "place", home)


def reported(workplace: Workplace, body: str, *, shell: str = "", threads: int = 1) -> Any:
    """What a Python script of a user leaves in `report.json`."""
    workplace.write("script.py", HEAD + body)
    done = workplace.call(["sh", "-c", f"exec {sys.executable} script.py {shell}"], OMP_NUM_THREADS=str(threads))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return json.loads((workplace.cwd / "report.json").read_text())


CLOSED = """
def closed():
    found = []
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            found.append(descriptor)
    return found, [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]

before = closed()
report["tokens"] = llem.run_experiment(config).output_tokens
report["completed"] = llem.run_study(study, output_dir="studies").summary.completed
report["before"], report["after"] = before, closed()
leave()
"""


def test_the_library_works_without_standard_streams_and_leaves_them_closed(tmp_path: Path, home: Path) -> None:
    report = reported(workplace_of(tmp_path, home), CLOSED, shell="<&- >&- 2>&-")
    assert (report["tokens"], report["completed"]) == (16, 1)
    assert report["before"] == report["after"] == [[0, 1, 2], ["stdin", "stdout", "stderr"]]


@pytest.mark.parametrize("streams", ["<&-", "<&- >&- 2>&-"])
def test_the_command_works_without_standard_streams(tmp_path: Path, home: Path, streams: str) -> None:
    workplace = workplace_of(tmp_path, home)
    command = f"exec {' '.join(llem_command())} run q.yaml {streams}"
    done = workplace.call(["sh", "-c", command])
    assert done.returncode == 0, done.stderr
    assert len(workplace.results()) == 1
    assert ("Throughput" in done.stdout) == (">&-" not in streams.split())


def homeless(*command: str) -> list[str]:
    """The command as a user without a home and without an entry in passwd runs it."""
    return as_somebody("env", "-u", "HOME", "-u", "USER", "-u", "LOGNAME", *command)


def test_a_user_without_a_home_can_use_the_command(tmp_path: Path, home: Path) -> None:
    workplace = workplace_of(tmp_path, home)
    done = workplace.call(homeless(*llem_command(), "run", "q.yaml"))
    assert done.returncode == 0, done.stderr
    assert len(workplace.results()) == 1


def test_a_user_without_a_home_is_told_by_the_library(tmp_path: Path, home: Path) -> None:
    workplace = workplace_of(tmp_path, home)
    done = workplace.call(
        homeless(sys.executable, "-c", "import llenergymeasure; llenergymeasure.run_experiment(model='m')")
    )
    assert f"ConfigError: user {USER} has no home directory" in done.stderr


GLOBAL_STATE = """
def state():
    return {
        "start method": multiprocessing.get_start_method(allow_none=True),
        "signals": [repr(signal.getsignal(number)) for number in signal.valid_signals()],
        "logging": [
            (name, log.handlers, log.level, log.propagate)
            for name, log in sorted(logging.root.manager.loggerDict.items())
            if isinstance(log, logging.Logger) and (log.level or not log.propagate or not silent(log.handlers))
        ] + [logging.root.handlers[:], logging.root.level],
        "random": repr(random.getstate()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
        "filters": [repr(entry) for entry in warnings.filters] + [repr(warnings.showwarning)],
        "environ": dict(os.environ),
        "streams": [repr(sys.stdin), repr(sys.stdout), repr(sys.stderr)],
        "directory": os.getcwd(),
        "children": [pid for pid in filter(str.isdecimal, os.listdir("/proc")) if parent_of(pid) == os.getpid()],
    }

def silent(handlers):
    return all(isinstance(handler, logging.NullHandler) for handler in handlers)

def parent_of(pid):
    try:
        return int(Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None

def compare(name, run):
    before = state()
    run()
    after = state()
    report[name] = [part for part in before if before[part] != after[part]]

# What is imported changes what it wants, once; matplotlib keeps the fonts open that it has measured letters of.
import numpy, pyarrow.parquet, matplotlib.font_manager, llenergymeasure.study.execute
for weight in ("normal", "bold"):
    matplotlib.font_manager.get_font(matplotlib.font_manager.findfont(f"DejaVu Sans:{weight}"))
compare("study", lambda: llem.run_study(study, output_dir="studies"))
llem.run_experiment(config)  # imports an engine
compare("experiment", lambda: llem.run_experiment(config))

def in_a_thread():
    thread = threading.Thread(target=llem.run_experiment, args=(config,))
    thread.start()
    thread.join()

async def in_a_loop():
    llem.run_experiment(config)

compare("thread", in_a_thread)
compare("event loop", lambda: asyncio.run(in_a_loop()))
try:
    llem.run_experiment(config, n=100_000)  # more than there are
except LLEMError as error:
    report["failed with"] = str(error)
compare("failure", lambda: None)
multiprocessing.set_start_method("spawn")  # raises where somebody has set one
leave()
"""


def test_a_run_leaves_no_global_state(tmp_path: Path, home: Path) -> None:
    report = reported(workplace_of(tmp_path, home), GLOBAL_STATE)
    assert "prompts.jsonl" in report.pop("failed with")
    assert report == {"study": [], "experiment": [], "thread": [], "event loop": [], "failure": []}


SEVERAL_AT_ONCE = """
fields["decoder"] = {"temperature": 1.0, "do_sample": True}
fields["measurement"] = {"save_outputs": True}

def texts(where, seed):
    (path,) = Path(where, str(seed)).glob("*/outputs.jsonl")
    return [json.loads(line)["output"] for line in path.read_text().splitlines()]

def run(where, seed):
    llem.run_experiment(llem.ExperimentConfig(**fields, random_seed=seed, output_dir=f"{where}/{seed}"))

for seed in range(3):
    run("alone", seed)
before = [logging.getLogger("transformers").handlers[:], warnings.showwarning, warnings.filters[:]]
threads = [threading.Thread(target=run, args=("together", seed)) for seed in range(3)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
report["alone"] = [texts("alone", seed) for seed in range(3)]
report["together"] = [texts("together", seed) for seed in range(3)]
report["left"] = before == [logging.getLogger("transformers").handlers[:], warnings.showwarning, warnings.filters[:]]
leave()
"""


def test_several_runs_in_threads_take_turns_and_give_what_each_gives_alone(tmp_path: Path, home: Path) -> None:
    report = reported(workplace_of(tmp_path, home), SEVERAL_AT_ONCE)
    assert report["together"] == report["alone"]
    assert len({json.dumps(texts) for texts in report["alone"]}) == 3
    assert report["left"]


FORKS = """
def in_a_pool():
    return llem.run_study(study, output_dir="studies").summary.completed

with multiprocessing.get_context("fork").Pool(1) as pool:
    report["pool"] = pool.apply(in_a_pool)

import torch
torch.set_num_threads(4)
(torch.ones(2000, 2000) @ torch.ones(2000, 2000)).sum().item()  # an engine's threads are there now
if os.fork() == 0:
    result = llem.run_experiment(config, output_dir="forked")
    os._exit(0 if result.output_tokens == 16 else 1)
report["fork"] = os.waitstatus_to_exitcode(os.wait()[1])
leave()
"""


def test_it_works_in_a_pool_and_in_a_fork_of_a_process_that_used_torch(tmp_path: Path, home: Path) -> None:
    workplace = workplace_of(tmp_path, home)
    assert reported(workplace, FORKS, threads=4) == {"pool": 1, "fork": 0}
    assert len(workplace.results()) == 2


MOVING = """
os.mkdir("elsewhere")
home = os.getcwd()

def move():
    while not list(Path(home, "studies").glob("*/manifest.json")):
        time.sleep(0.01)
    os.chdir("elsewhere")

threading.Thread(target=move, daemon=True).start()
experiments = [config, llem.ExperimentConfig(**{**fields, "n": 1})]
two = llem.StudyConfig(experiments=experiments, execution={"config_gap_seconds": 0})
report["completed"] = llem.run_study(two, output_dir="studies").summary.completed
os.chdir(home)
leave()
"""


def test_a_study_does_not_mind_that_the_current_directory_changes(tmp_path: Path, home: Path) -> None:
    workplace = workplace_of(tmp_path, home)
    assert reported(workplace, MOVING)["completed"] == 2
    assert len(list((workplace.cwd / "studies").glob("*/*/result.json"))) == 2


def test_a_thread_that_is_refused_is_an_error_of_ours_and_the_interpreter_ends(tmp_path: Path, home: Path) -> None:
    body = """
threading.stack_size(1 << 46)  # more than any machine has: the system really refuses
try:
    llem.run_experiment(config)
except LLEMError as error:
    report["error"] = str(error)
leave()
"""
    report = reported(workplace_of(tmp_path, home), body)
    assert "could not be started" in report["error"]


def test_a_run_from_within_a_run_is_refused(tmp_path: Path, home: Path) -> None:
    body = """
from llenergymeasure._api import _run

def again(result):
    try:
        llem.run_experiment(config)
    except LLEMError as error:
        report["error"] = str(error)

_run(study, again)
leave()
"""
    report = reported(workplace_of(tmp_path, home), body)
    assert "from within another one" in report["error"]
