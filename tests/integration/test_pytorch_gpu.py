"""The engine on a real CUDA GPU: instants by device events, devices by UUID, memory, kernels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llenergymeasure.core.backends.conformance import check_backend  # noqa: E402
from llenergymeasure.core.backends.pytorch.backend import PyTorchBackend  # noqa: E402
from llenergymeasure.core.clock import SystemClock  # noqa: E402
from llenergymeasure.core.gpu.driver import find_gpus  # noqa: E402
from llenergymeasure.core.gpu.nvml import open_nvml  # noqa: E402
from llenergymeasure.exceptions import BackendError  # noqa: E402
from pytorch_models import experiment, ids, loaded, requests, save_model  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU that PyTorch can use"),
]

CUDA = {"device": "cuda", "batch_size": 4}
STALL_CYCLES = 200_000_000  # of the SM clock, whatever that is by then: 0.1 s at 2 GHz
TEXTS = ("a", "the quick brown fox", "why?", "one two three")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_engine_conforms_on_a_gpu(model: Path, precision: str) -> None:
    config = experiment(model, precision=precision, pytorch=CUDA)
    assert check_backend(lambda: PyTorchBackend(SystemClock()), config) == []


def test_planned_and_used_devices_are_the_ones_nvml_knows(model: Path) -> None:
    config = experiment(model, pytorch=CUDA)
    nvml = open_nvml()
    with loaded(config) as engine:
        assert engine.devices() == engine.plan_devices(config)
        (uuid,) = engine.devices()
        assert [gpu.uuid for gpu in find_gpus([uuid], nvml)] == [uuid]
        assert engine.describe().device_names == (torch.cuda.get_device_name(0),)


def test_planning_starts_no_cuda(model: Path) -> None:
    import subprocess
    import sys

    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from llenergymeasure.core.backends.registry import get_backend
from pytorch_models import experiment
engine = get_backend("pytorch")
config = experiment({str(model)!r}, pytorch={{"device": "cuda"}})
assert engine.preflight(config) == []
engine.plan_devices(config)
print(torch.cuda.is_initialized())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"  # a context would raise the idle power that the baseline measures


def test_a_stall_on_the_device_appears_in_its_tokens_gap(model: Path) -> None:
    """The host is long past step 7 when the device gets there; the instants must be the device's."""
    began, over = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with loaded(experiment(model, pytorch=CUDA)) as engine:
        engine.generate(requests(*TEXTS, minimum=16))  # warm
        steps = 0

        def stall(*_: object) -> None:
            nonlocal steps
            steps += 1
            if steps == 7:
                began.record()
                torch.cuda._sleep(STALL_CYCLES)
                over.record()

        engine.parts.model.register_forward_pre_hook(stall)
        output = engine.generate(requests(*TEXTS, minimum=16)).requests
    stalled_s = began.elapsed_time(over) / 1000.0
    assert stalled_s > 0.04
    for request in output:
        times_s = [request.started_s, *(request.token_times_s or ())]
        gaps_s = [late - early for early, late in pairwise(times_s)]
        assert gaps_s.index(max(gaps_s)) == 6
        assert gaps_s[6] >= 0.99 * stalled_s


def test_figures_of_memory_are_the_devices(model: Path) -> None:
    with loaded(experiment(model, pytorch=CUDA)) as engine:
        engine.reset_peak_memory()
        engine.generate(requests(*TEXTS))
        memory = engine.memory()
        assert memory.peak_mb is not None
        assert memory.model_mb is not None
        assert memory.peak_mb > memory.model_mb
    assert torch.cuda.memory_allocated() < 40_000_000  # unloading gave it back; cuBLAS keeps 33.5 MB on Hopper


def test_running_out_of_device_memory_says_what_to_lower(model: Path) -> None:
    with loaded(experiment(model, pytorch=CUDA)) as engine:
        engine.parts.model.register_forward_pre_hook(
            lambda *_: torch.empty(2**43, dtype=torch.uint8, device="cuda") and None
        )
        with pytest.raises(BackendError, match=r"Lower pytorch.batch_size"):
            engine.generate(requests(*TEXTS))


@pytest.mark.parametrize(
    "section",
    [
        {"cache_implementation": "static"},
        {"cache_implementation": "offloaded"},
        {"torch_compile": True},
        {"device_map": "auto"},
    ],
)
def test_settings_that_need_a_gpu_give_the_same_text(model: Path, section: dict[str, object]) -> None:
    with loaded(experiment(model, pytorch=CUDA)) as plain:
        expected = ids(plain.generate(requests(*TEXTS)))
    with loaded(experiment(model, pytorch={**CUDA, **section})) as engine:
        assert ids(engine.generate(requests(*TEXTS))) == expected


def test_batches_are_seeded_on_the_device_too(model: Path) -> None:
    config = experiment(model, decoder={"temperature": 1.0}, pytorch=CUDA)
    with loaded(config) as engine:
        before = torch.cuda.get_rng_state().tolist()
        first = ids(engine.generate(requests(*TEXTS)))
        assert torch.cuda.get_rng_state().tolist() == before
        torch.cuda.manual_seed(999)
        assert ids(engine.generate(requests(*TEXTS))) == first
