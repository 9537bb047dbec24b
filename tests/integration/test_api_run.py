"""`run_experiment` for real: what it returns, what it leaves on disk, and what it leaves alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llem_process import Workplace, but_for_the_disk
from llenergymeasure.results.persistence import load_result

pytest.importorskip("transformers", reason="needs the pytorch extra")

SCRIPT = """
import json, os, random, signal, sys, threading, warnings
from pathlib import Path

import llenergymeasure as llem

def files():
    roots = [os.getcwd(), os.environ["HOME"], os.environ["TMPDIR"]]
    return sorted(str(path) for root in roots for path in Path(root).rglob("*"))

fields = {
    "model": "builtin/tiny-llama", "n": 2, "max_output_tokens": 8, "dataset": "prompts.jsonl",
    "pytorch": {"device": "cpu"}, "baseline": {"enabled": False},
    "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
}
config = llem.ExperimentConfig(**fields)

def at_start():
    return repr(random.getstate()), [repr(signal.getsignal(number)) for number in signal.valid_signals()], os.getcwd()

untouched = at_start()
first = llem.run_experiment(config)        # imports the engine, and makes the built-in model
first_changed = at_start() != untouched

import numpy, torch

def state():
    return {
        "random": repr(random.getstate()), "numpy": repr(numpy.random.get_state()),
        "torch": torch.get_rng_state().tolist(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": str(torch.get_default_dtype()), "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(), "matmul": torch.get_float32_matmul_precision(),
        "signals": {int(number): repr(signal.getsignal(number)) for number in signal.valid_signals()},
        "cwd": os.getcwd(), "environ": dict(os.environ), "excepthook": repr(sys.excepthook),
        "running": sorted(thread.name for thread in threading.enumerate()),
        "showwarning": repr(warnings.showwarning),
    }

random.seed(1), numpy.random.seed(2), torch.manual_seed(3)
before, on_disk = state(), files()
results = {"config": first, "path": llem.run_experiment("q.yaml"), "keywords": llem.run_experiment(**fields)}
results["overridden"] = llem.run_experiment(config, n=1, **{"pytorch.batch_size": 2})

def in_thread():
    results["thread"] = llem.run_experiment(config)

thread = threading.Thread(target=in_thread)
thread.start(), thread.join()
cell = {"llem": llem, "config": config}
exec("result = llem.run_experiment(config)", cell)   # as a notebook runs its cells
results["cell"] = cell["result"]
after = state()

json.dump({
    "hashes": {name: result.measurement_config_hash for name, result in results.items()},
    "ids": [result.experiment_id for result in results.values()],
    "outputs": {name: result.output_tokens for name, result in results.items()},
    "types": sorted({type(result).__name__ for result in results.values()}),
    "first_changed": first_changed,
    "changed": [name for name in before if before[name] != after[name]],
    "new_files": sorted(set(files()) - set(on_disk)),
    "saved": [llem.run_experiment(config, output_dir="out").measurement_config_hash for _ in range(2)],
}, open("report.json", "w"))
"""


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workplace, dict[str, Any], str]:
    """A user's session on `python -`: the report it wrote, and what it said."""
    root = tmp_path_factory.mktemp("session")
    workplace = Workplace(root, root / "home")
    workplace.home.mkdir()
    done = workplace.call([sys.executable, "-"], said=SCRIPT)
    assert done.returncode == 0, done.stderr
    return workplace, json.loads((workplace.cwd / "report.json").read_text()), done.stdout + done.stderr


Session = tuple[Workplace, dict[str, Any], str]


def test_a_file_a_config_and_keywords_describe_the_same_experiment(session: Session) -> None:
    _, report, _ = session
    hashes = report["hashes"]
    assert hashes["config"] == hashes["path"] == hashes["keywords"] == hashes["thread"] == hashes["cell"]
    assert report["types"] == ["ExperimentResult"]
    assert len(set(report["ids"])) == len(report["ids"])


def test_keywords_override_a_config(session: Session) -> None:
    _, report, _ = session
    assert report["hashes"]["overridden"] != report["hashes"]["config"]
    assert report["outputs"]["overridden"] == 8
    assert report["outputs"]["config"] == 16


def test_it_runs_in_a_thread_and_in_a_notebooks_cell(session: Session) -> None:
    _, report, _ = session
    assert report["outputs"]["thread"] == report["outputs"]["cell"] == 16


def test_nothing_of_the_process_is_changed(session: Session) -> None:
    _, report, _ = session
    assert report["changed"] == []
    assert not report["first_changed"]


def test_nothing_is_written_without_an_output_directory(session: Session) -> None:
    _, report, _ = session
    assert report["new_files"] == []


def test_the_library_prints_nothing(session: Session) -> None:
    _, _, said = session
    assert but_for_the_disk(said) == ""


def test_an_output_directory_gets_a_complete_result_each_time(session: Session) -> None:
    workplace, report, _ = session
    paths = workplace.results()
    assert len({path.parent for path in paths}) == len(paths) == 2
    assert {load_result(path).measurement_config_hash for path in paths} == set(report["saved"])
    assert set(report["saved"]) == {report["hashes"]["config"]}
    assert {path.name for path in (workplace.cwd / "out").iterdir()} == {path.parent.name for path in paths}
    assert workplace.leftovers() == []


def test_the_only_files_outside_are_the_built_in_model_and_the_list_of_fonts_in_the_cache(session: Session) -> None:
    workplace, _, _ = session
    written = [path.relative_to(workplace.home) for path in workplace.home.rglob("*") if path.is_file()]
    fonts = [path for path in written if path.parent == Path(".cache/matplotlib")]  # matplotlib keeps it, for reports
    assert len(fonts) == 1
    assert {Path(*path.parts[:3]) for path in written if path not in fonts} == {Path(".cache/llenergymeasure/models")}
