"""The command line with nothing but what the package itself requires, with an engine, and with a scripted GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.nvml.scripted import ScriptedGpu, ScriptedNvml, have_compiler
from tests.nvml.waveform import constant

import llenergymeasure

LLAMA_8B = """\
{"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
 "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": false}
"""
EXPERIMENT = "dataset: {synthetic: {n: 4, input_len: 512, output_len: 128}}\n"


def requirements(extra: str) -> Iterator[metadata.Distribution]:
    """The package's own requirements with those of one extra (`""`: none), and theirs, as installed here."""
    seen: set[tuple[str, str]] = set()
    wanted = [("llenergymeasure", extra)]
    while wanted:
        name, chosen = wanted.pop()
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        distribution = metadata.distribution(name)
        yield distribution
        for text in distribution.requires or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": chosen}):
                wanted += [(needed.name.lower(), inner) for inner in needed.extras or ("",)]


class Install:
    """A Python that sees this package, what it requires, and nothing else.

    Args:
        directory: Takes links to the installed packages.
        extra: The extra that is installed too.
    """

    def __init__(self, directory: Path, extra: str) -> None:
        self._packages = directory / "packages"
        self._packages.mkdir()
        self.work = directory / "work"
        self.work.mkdir()
        for distribution in requirements(extra):
            for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
                link, target = self._packages / top, Path(str(distribution.locate_file(top)))
                if target.exists() and not link.exists():
                    link.symlink_to(target)
        (self.work / "experiment.yaml").write_text(EXPERIMENT)

    def run(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run `llem` in the work directory."""
        source = Path(llenergymeasure.__file__).parents[1]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
        # -S: no site-packages, so that only the links are seen
        return subprocess.run(
            [sys.executable, "-S", "-m", "llenergymeasure", *arguments],
            cwd=self.work,
            env={**kept, "PYTHONPATH": f"{self._packages}{os.pathsep}{source}", **environ},
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Install:
    return Install(tmp_path_factory.mktemp("bare"), "")


@pytest.fixture(scope="module")
def with_torch(tmp_path_factory: pytest.TempPathFactory) -> Install:
    if find_spec("torch") is None or find_spec("transformers") is None:
        pytest.skip("the pytorch extra is not installed")
    return Install(tmp_path_factory.mktemp("torch"), "pytorch")


@pytest.fixture
def board(tmp_path: Path) -> Iterator[ScriptedNvml]:
    """A GPU of 24 GB, 20 GB of them free, that draws 120 W."""
    if not have_compiler():
        pytest.skip("the scripted NVML is built with gcc, which is not installed")
    gpu = ScriptedGpu.of(
        "ada", name="NVIDIA L4", waveform=constant(120.0), memory_total_mb=24_000, memory_used_mb=4_000
    )
    nvml = ScriptedNvml([gpu], tmp_path)
    yield nvml
    nvml.close()


def the(lines: Sequence[str], start: str) -> str:
    """The only line that starts so."""
    (found,) = (line.strip() for line in lines if line.strip().startswith(start))
    return found


def test_a_machine_with_nothing_is_told_what_to_install(bare: Install) -> None:
    done = bare.run("config", CUDA_VISIBLE_DEVICES="")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert the(lines, "GPUs ").startswith("GPUs         none: ")
    assert the(lines, "pytorch ").startswith("pytorch      no   the pytorch backend needs torch")
    assert the(lines, "codecarbon ").startswith("codecarbon   no ")
    assert the(lines, "nvml ") == "nvml         no   measures GPUs, and there is none"
    assert the(lines, "Install an engine") == 'Install an engine:  pip install "llenergymeasure[pytorch]"'
    assert [path.name for path in bare.work.iterdir()] == ["experiment.yaml"]


def test_a_machine_with_torch_is_told_how_to_begin(with_torch: Install) -> None:
    done = with_torch.run("config", CUDA_VISIBLE_DEVICES="")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert the(lines, "pytorch ").startswith(f"pytorch      yes  torch {metadata.version('torch')}")
    assert "Install an engine" not in done.stdout
    assert the(lines, "Measure:") == "Measure:  llem run --model builtin/tiny-llama -n 20 --device cpu"


def test_a_gpu_is_shown_with_a_reading_as_proof(bare: Install, board: ScriptedNvml) -> None:
    done = bare.run("config", **board.environment())
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert the(lines, "GPU 0 ").startswith("GPU 0        NVIDIA L4, 24.0 GB (20.0 GB free)")
    assert the(lines, "nvml ").startswith("nvml         yes  GPU 0 draws 120.0 W now")
    assert the(lines, "zeus ").startswith("zeus         no ")


def assert_lacks_the_engine(preview: subprocess.CompletedProcess[str]) -> None:
    assert preview.returncode == 1
    assert re.match(r"Pre-flight failed: 1 issue\n  - the pytorch backend needs torch.*\n$", preview.stderr)


@pytest.mark.parametrize(
    ("layers", "verdict"), [(32, "fits in the 20.0 GB free on NVIDIA L4"), (40, "DOES NOT FIT in the 20.0 GB free")]
)
def test_a_dry_run_needs_no_engine_to_compare_a_model_with_the_gpu(
    bare: Install, board: ScriptedNvml, layers: int, verdict: str
) -> None:
    model = bare.work.parent / f"llama-{layers}"
    model.mkdir()
    (model / "config.json").write_text(LLAMA_8B.replace('"num_hidden_layers": 32', f'"num_hidden_layers": {layers}'))
    done = bare.run("run", "experiment.yaml", "-m", str(model), "--dry-run", **board.environment())
    assert_lacks_the_engine(done)
    assert the(done.stdout.splitlines(), "Engine ").startswith(
        "Engine       not usable here: the pytorch backend needs"
    )
    assert verdict in the(done.stdout.splitlines(), "GPU memory ")


def test_a_dry_run_finds_a_model_in_the_hubs_cache(bare: Install) -> None:
    repository = bare.work.parent / "hf" / "hub" / "models--owner--eight-billion"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(LLAMA_8B)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abc")
    done = bare.run(
        "run", "experiment.yaml", "-m", "owner/eight-billion", "--dry-run", HF_HOME=str(bare.work.parent / "hf")
    )
    assert_lacks_the_engine(done)
    # 8.03 billion weights of 2 bytes, 640 tokens of 131 kB, 15 % in reserve
    assert "about 18.6 GB: weights 16.1 GB, key-value cache 83.9 MB" in done.stdout


def test_a_dry_run_knows_the_built_in_model_and_a_real_run_says_what_is_missing(bare: Install) -> None:
    command = ("run", "experiment.yaml", "-m", "builtin/tiny-llama", "--device", "cpu")
    preview = bare.run(*command, "--dry-run")
    assert_lacks_the_engine(preview)
    assert the(preview.stdout.splitlines(), "Memory ").startswith("Memory       about ")
    run = bare.run(*command)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.endswith(preview.stderr)
    assert 'pip install "llenergymeasure[pytorch]"' in run.stderr
    assert [path.name for path in bare.work.iterdir()] == ["experiment.yaml"]
