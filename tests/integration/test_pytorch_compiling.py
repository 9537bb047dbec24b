"""PyTorch compiles before the window, for every shape in it; what it compiles in it all the same is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from fakes import PREPARES_NOTHING, ConstantMeter  # noqa: E402
from llenergymeasure.config.models import WarmupConfig  # noqa: E402
from llenergymeasure.core.backends.protocol import Specialisation  # noqa: E402
from llenergymeasure.core.clock import SystemClock  # noqa: E402
from llenergymeasure.core.progress import ignore_events  # noqa: E402
from llenergymeasure.core.warmup import warm_up  # noqa: E402
from llenergymeasure.core.window import Window, measure_window  # noqa: E402
from pytorch_models import experiment, ids, loaded, requests, save_model  # noqa: E402

COMPILED = {"torch_compile": True, "torch_compile_backend": "eager", "batch_size": 3}
RAGGED = ("abc", "abcdef", "a", "abcd", "ab", "abcdefgh", "abcde")
"""Seven prompts: two full batches of unlike widths, and one alone."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), num_hidden_layers=1)


def window_after(model: Path, section: dict[str, Any], warmup: WarmupConfig, *, rehearsed: bool = True) -> Window:
    clock, asked = SystemClock(), requests(*RAGGED, limits=[24, 20], minimum=24)
    meter = ConstantMeter(clock)  # type: ignore[arg-type]
    with loaded(experiment(model, max_output_tokens=24, pytorch=section)) as engine:
        shapes = engine.describe().specialisation if rehearsed else PREPARES_NOTHING
        warm_up(engine, asked, warmup, shapes, meter, clock, ignore_events)
        return measure_window(engine, asked, meter, clock, ignore_events)


OFF = WarmupConfig(enabled=False)
ONE = WarmupConfig(n_warmup=1, thermal_floor_seconds=0.0)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("warmup", [OFF, ONE], ids=["off", "one"])
def test_no_shape_of_the_window_is_compiled_in_it(model: Path, cache: str, warmup: WarmupConfig) -> None:
    assert window_after(model, {**COMPILED, "cache_implementation": cache}, warmup).compilations == 0


def test_what_is_compiled_in_the_window_all_the_same_is_counted(model: Path) -> None:
    assert window_after(model, COMPILED, ONE, rehearsed=False).compilations > 0


def test_a_model_that_is_not_compiled_counts_nothing_and_needs_no_full_texts(model: Path) -> None:
    with loaded(experiment(model)) as engine:
        assert engine.describe().specialisation == Specialisation()
        assert engine.generate(requests("abc")).compilations == 0


def test_flex_attention_compiles_by_itself(model: Path) -> None:
    with loaded(experiment(model, pytorch={"attn_implementation": "flex_attention"})) as engine:
        assert engine.describe().specialisation.every_prompt_length


def test_the_rehearsal_changes_no_text(model: Path) -> None:
    with loaded(experiment(model, pytorch={"batch_size": 3})) as engine:
        expected = ids(engine.generate(requests(*RAGGED)))
        clock = SystemClock()
        asked = requests(*RAGGED)
        warm_up(engine, asked, OFF, engine.describe().specialisation, ConstantMeter(clock), clock, ignore_events)  # type: ignore[arg-type]
        assert ids(engine.generate(asked)) == expected


def test_nothing_listens_to_the_compiler_after_unloading(model: Path) -> None:
    from torch._dynamo.callback import callback_handler

    before = list(callback_handler.start_callbacks)
    with loaded(experiment(model, pytorch=COMPILED)):
        assert len(callback_handler.start_callbacks) == len(before) + 1
    assert [callback for callback in callback_handler.start_callbacks if callback not in before] == []
