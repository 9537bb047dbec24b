"""`llem run` where something is missing, full or in the way: every reason told, nothing measured lost."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from command_line import CommandLine
from llem_process import PROMPTS, QUICK, Workplace
from llenergymeasure.results.persistence import load_result
from mounts import fill, tmpfs

torch = pytest.importorskip("torch", reason="needs the pytorch extra")
pytest.importorskip("transformers", reason="needs the pytorch extra")

HIDING = str(Path(__file__).parents[1] / "without_packages")

NO_ENERGY = QUICK + "energy: {backend: null}\n"


@pytest.fixture
def llem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line in this process, in a directory with an experiment that can run."""
    (tmp_path / "cwd").mkdir()
    llem = CommandLine(tmp_path / "cwd", monkeypatch, capfd)
    llem.file("q.yaml", NO_ENERGY)
    llem.file("prompts.jsonl", PROMPTS)
    return llem


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def workplace(tmp_path: Path, home: Path) -> Workplace:
    return Workplace(tmp_path, home)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_preflight_tells_every_reason_at_once(llem: CommandLine) -> None:
    llem.file("bad.jsonl", '{"prompt": "fine"}\n{"prompt": 3}\n')
    llem.file("results", "a file in the way")
    spoken = llem("run", "-m", "./no-such-model", "-d", "bad.jsonl", "-n", "2", "-o", "results")
    assert (spoken.code, spoken.out) == (1, "")
    assert "Pre-flight failed: 4 issues" in spoken.err
    assert re.search(r"no CUDA GPU .* pass --device cpu", spoken.err)
    assert "no such directory: no-such-model" in spoken.err
    assert 'bad.jsonl, line 2: "prompt" must be text' in spoken.err
    assert "results is a file. Choose a directory." in spoken.err
    assert "Traceback" not in spoken.err
    assert sorted(path.name for path in llem.directory.iterdir()) == ["bad.jsonl", "prompts.jsonl", "q.yaml", "results"]


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ("", "dataset own.jsonl: it is empty"),
        ('{"prompt": "fine"}\n{"prompt": "cut o', "dataset own.jsonl, line 2: "),
        ('{"prompt": "one"}\n', "n = 2 prompts were asked for, it has 1. Set n to at most 1."),
    ],
)
def test_prompts_that_cannot_be_used_are_told_with_their_line(llem: CommandLine, dataset: str, said: str) -> None:
    llem.file("own.jsonl", dataset)
    spoken = llem("run", "q.yaml", "--dataset", "own.jsonl")
    assert spoken.code == 1
    assert said in spoken.err


def test_a_meter_that_cannot_measure_this_run_is_refused_before_it(llem: CommandLine) -> None:
    llem.file("q.yaml", QUICK + "energy: {backend: nvml}\n")
    spoken = llem("run", "q.yaml")
    assert spoken.code == 1
    assert "energy.backend: nvml measures GPUs, and this run uses the CPU." in spoken.err


def test_a_result_that_does_not_fit_on_the_disk_is_shown_and_saved_elsewhere(llem: CommandLine) -> None:
    with tmpfs(llem.directory / "disk", "size=64k") as disk:
        fill(disk, leave_pages=3)
        spoken = llem("run", "q.yaml", "--output", "disk")
        assert {path.name for path in disk.iterdir()} == {"filler"}
    assert spoken.code == 1
    assert spoken.out.startswith("Model ")
    assert "Result" not in spoken.out
    assert f"The result could not be saved in {disk}: " in spoken.err
    assert "No space left on device. Free some space or choose another directory." in spoken.err
    (rescued,) = llem.tmp.rglob("result.json")
    assert f"It was saved as {rescued} instead." in spoken.err
    assert load_result(rescued).output_tokens == 16


def test_a_disk_that_is_full_from_the_start_is_told_before_anything_is_measured(llem: CommandLine) -> None:
    with tmpfs(llem.directory / "disk", "size=64k") as disk:
        fill(disk, leave_pages=0)
        spoken = llem("run", "q.yaml", "--output", "disk")
        assert {path.name for path in disk.iterdir()} == {"filler"}
    assert spoken.code == 1
    assert "No space left on device. Free some space or choose another directory." in spoken.err
    assert "Measuring" not in spoken.err
    assert list(llem.tmp.iterdir()) == []


def test_a_read_only_place_for_results_is_told_before_anything_is_measured(llem: CommandLine) -> None:
    with tmpfs(llem.directory / "disk", "size=64k,ro"):
        spoken = llem("run", "q.yaml", "--output", "disk/results")
    assert spoken.code == 1
    assert f"{llem.directory}/disk is not writable. Choose a directory you may write to (--output)." in spoken.err


def test_a_place_for_results_may_be_written_with_a_tilde(llem: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(llem.directory / "home"))
    spoken = llem("run", "q.yaml", "--output", "~/results")
    assert spoken.code == 0
    (path,) = (llem.directory / "home" / "results").rglob("result.json")
    assert f"Result         {path}" in spoken.out.splitlines()


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_engine_says_what_to_install(workplace: Workplace, package: str) -> None:
    done = workplace.run("run", "q.yaml", PYTHONPATH=HIDING, HIDDEN_PACKAGES=package)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"the pytorch backend needs {package}" in done.stderr
    assert 'pip install "llenergymeasure[pytorch]"' in done.stderr
    assert "Traceback" not in done.stderr
    assert workplace.results() == []


def test_without_any_meter_throughput_is_still_measured_and_energy_says_what_to_install(workplace: Workplace) -> None:
    done = workplace.run("run", "q.yaml", "-q", PYTHONPATH=HIDING, HIDDEN_PACKAGES="codecarbon,zeus")
    assert done.returncode == 0, done.stderr
    (path,) = workplace.results()
    result = load_result(path)
    assert result.avg_tokens_per_second > 0
    if result.total_energy_j is None:  # else this machine shows RAPL, and needs no CodeCarbon
        assert re.search(r"^Energy +not measured", done.stdout, re.MULTILINE)
        assert 'pip install "llenergymeasure[codecarbon]"' in " ".join(done.stdout.split())


def test_offline_a_model_of_the_hub_is_told_with_the_way_out(workplace: Workplace) -> None:
    done = workplace.run(
        "run", "-m", "openai-community/gpt2", "-d", "prompts.jsonl", "--device", "cpu", "-n", "2", HF_HUB_OFFLINE="1"
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "openai-community/gpt2 is not in the local cache, and HF_HUB_OFFLINE forbids asking the Hub" in done.stderr
    assert workplace.results() == []
    assert workplace.leftovers() == []
