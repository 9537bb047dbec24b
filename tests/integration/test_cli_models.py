"""`llem run` with models, adapters and data sets of every condition: what runs, and what each bad one is told."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import CommandLine
from llem_process import Workplace
from llenergymeasure import run_experiment
from llenergymeasure.domain.experiment import ExperimentResult

torch = pytest.importorskip("torch", reason="needs the pytorch extra")
pytest.importorskip("transformers", reason="needs the pytorch extra")
peft = pytest.importorskip("peft", reason="needs the pytorch extra")

from transformers import AutoModelForCausalLM  # noqa: E402

from pytorch_models import byte_tokenizer, save_model  # noqa: E402

EXPERIMENT = """\
precision: fp32
n: 3
dataset: prompts.jsonl
max_input_tokens: 64
max_output_tokens: 8
decoder: {preset: deterministic, min_new_tokens: 8}
pytorch: {device: cpu, batch_size: 2}
warmup: {n_warmup: 1, thermal_floor_seconds: 0}
baseline: {enabled: false}
energy: {backend: null}
measurement: {save_outputs: true}
"""
PROMPTS = ["Heat flows from warm to cold.", "Name three rivers.", "x" * 40]


@pytest.fixture
def llem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    """The command line, in a directory with an experiment that lacks its model, and prompts."""
    (tmp_path / "cwd").mkdir()
    llem = CommandLine(tmp_path / "cwd", monkeypatch, capfd)
    llem.file("q.yaml", EXPERIMENT)
    llem.file("prompts.jsonl", "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return llem


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose tokenizer has no padding token."""
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(model, tmp_path_factory.mktemp("adapter"))


def save_adapter(model: Path, directory: Path) -> Path:
    """An adapter with random weights for a model."""
    settings = peft.LoraConfig(r=4, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        peft.get_peft_model(AutoModelForCausalLM.from_pretrained(model), settings).save_pretrained(directory)
    return directory


def run(llem: CommandLine, model: Path | str, more: str = "") -> tuple[ExperimentResult, list[str]]:
    """Run the experiment with a model; its saved result and texts."""
    llem.file("q.yaml", EXPERIMENT + more)
    spoken = llem("run", "q.yaml", "--model", str(model), "-o", f"out-{len(list(llem.directory.iterdir()))}")
    assert spoken.code == 0, spoken.err
    path = llem.directory / spoken.out.split("Result ", 1)[1].splitlines()[0].strip()
    lines = (path.with_name("outputs.jsonl")).read_text().splitlines()
    return ExperimentResult.from_json(path), [json.loads(line)["output"] for line in lines]


def refused(llem: CommandLine, *arguments: str) -> str:
    """Run it; the one reason it is refused for, before anything is measured or written."""
    spoken = llem("run", "q.yaml", *arguments)
    assert (spoken.code, spoken.out) == (1, "")
    assert "Traceback" not in spoken.err
    assert "Internal error" not in spoken.err
    assert list(llem.directory.rglob("result.json")) == []
    return spoken.err.split("\n", 1)[1]  # without the line that names the experiment


# --- models that run ---------------------------------------------------------------------------------------------


def test_a_tokenizer_without_a_padding_token_and_a_chat_template_change_nothing(
    llem: CommandLine, model: Path, tmp_path: Path
) -> None:
    chat = save_model(tmp_path / "chat")
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}<chat>{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(chat)
    plain, plain_texts = run(llem, model)
    templated, templated_texts = run(llem, chat)
    assert plain.input_tokens == templated.input_tokens == sum(len(prompt.encode()) for prompt in PROMPTS)
    assert plain.output_tokens == templated.output_tokens == 24
    assert plain_texts == templated_texts


def test_an_adapter_beside_the_weights_and_merged_into_them_gives_one_text_and_another_than_none(
    llem: CommandLine, model: Path, adapter: Path
) -> None:
    _, without = run(llem, model)
    beside, beside_texts = run(llem, model, f"lora: {{adapter_path: {adapter}}}\n")
    merged, merged_texts = run(llem, model, f"lora: {{adapter_path: {adapter}, merge_weights: true}}\n")
    assert beside_texts == merged_texts != without
    assert beside.effective_config["lora"]["rank"] == 4
    assert beside.total_flops is not None
    assert merged.total_flops is not None
    assert beside.total_flops > merged.total_flops  # the adapter's own matrices are multiplied too


def test_weights_in_8_bits_run_on_the_cpu(llem: CommandLine, model: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="weights are quantised with bitsandbytes, which is not installed")
    llem.file("q8.yaml", EXPERIMENT.replace("batch_size: 2", "batch_size: 2, load_in_8bit: true"))
    spoken = llem("run", "q8.yaml", "--model", str(model), "--json")
    assert spoken.code == 0, spoken.err
    result = ExperimentResult.model_validate_json(spoken.out)
    assert result.effective_config["pytorch"]["load_in_8bit"] is True
    assert result.output_tokens == 24
    assert "will be cast" not in spoken.err  # bitsandbytes says so at every product


def test_prompts_come_from_a_data_set_in_a_directory(llem: CommandLine, model: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the datasets extra")
    rows = datasets.Dataset.from_dict({"id": [1, 2, 3, 4], "text": [*PROMPTS, "never used"]})
    (llem.directory / "data").mkdir()
    rows.to_parquet(llem.directory / "data" / "train.parquet")
    from_file, texts = run(llem, model)
    spoken = llem("run", "q.yaml", "--model", str(model), "--dataset", "hf:./data", "--json", "-o", "from-hub")
    assert spoken.code == 0, spoken.err
    result = ExperimentResult.model_validate_json(spoken.out)
    assert result.dataset is not None
    assert (result.dataset.name, result.dataset.prompt_count) == ("hf:./data", 3)
    assert result.input_tokens == from_file.input_tokens
    (outputs,) = (llem.directory / "from-hub").rglob("outputs.jsonl")
    assert [json.loads(line)["output"] for line in outputs.read_text().splitlines()] == texts


def test_it_runs_where_an_event_loop_is_running_as_in_a_notebook(
    llem: CommandLine, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def cell() -> ExperimentResult:
        return run_experiment("q.yaml", model=str(model))

    capfd.readouterr()
    assert asyncio.run(cell()).output_tokens == 24
    assert capfd.readouterr() == ("", "")


# --- models that do not ------------------------------------------------------------------------------------------


def test_a_model_without_a_tokenizer(llem: CommandLine, tmp_path: Path) -> None:
    bare = save_model(tmp_path / "bare", tokenizer=False)
    assert f"model: {bare} comes without a tokenizer" in refused(llem, "-m", str(bare))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("config.json", "config.json cannot be read (.*). Fetch or save it anew"),
        ("tokenizer.json", r"cannot be loaded \(JSONDecodeError: .*\). Fetch or save its files anew"),
        ("model.safetensors", "cannot be loaded: SafetensorError: .* is damaged: delete it, and fetch or save it anew"),
    ],
)
def test_a_model_with_a_file_that_was_cut_short(llem: CommandLine, tmp_path: Path, file: str, said: str) -> None:
    damaged = save_model(tmp_path / "damaged") / file
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    said_here = refused(llem, "-m", str(damaged.parent))
    assert re.search(said, said_here)
    assert str(damaged.parent) in said_here


def test_a_model_whose_context_is_shorter_than_the_prompts(llem: CommandLine, tmp_path: Path) -> None:
    short = save_model(tmp_path / "short", max_position_embeddings=32)
    said = refused(llem, "-m", str(short))
    assert "max_input_tokens (64) + max_output_tokens (8) = 72" in said
    assert "takes 32 tokens in all. Lower them, e.g. max_input_tokens: 24." in said


def test_a_tokenizer_of_another_model(llem: CommandLine, tmp_path: Path) -> None:
    small = save_model(tmp_path / "small", vocab_size=100)
    assert "vocabulary ends at 99: the tokenizer belongs to another model" in refused(llem, "-m", str(small))


def test_an_adapter_of_another_model(llem: CommandLine, model: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", hidden_size=128)
    misfit = save_adapter(other, tmp_path / "misfit")
    llem.file("q.yaml", EXPERIMENT + f"lora: {{adapter_path: {misfit}}}\n")
    said = refused(llem, "-m", str(model))
    assert f"lora: {misfit} does not fit {model} (RuntimeError: " in said
    assert "size mismatch" in said
    assert f"it was made for {other}" in said


# --- the Hub -----------------------------------------------------------------------------------------------------


class GatedHub(http.server.BaseHTTPRequestHandler):
    """Refuses every model like the real one whoever sends no token, and remembers what was asked for."""

    asked: list[str]

    def do_HEAD(self) -> None:
        type(self).asked.append(self.path)
        self.send_response(401)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model is restricted.")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    GatedHub.asked = []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), GatedHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_gated_model_without_a_token(hub: str, tmp_path: Path) -> None:
    workplace = Workplace(tmp_path, tmp_path / "home", {"HF_ENDPOINT": hub})
    workplace.write("q.yaml", EXPERIMENT)
    done: subprocess.CompletedProcess[str] = workplace.run("run", "q.yaml", "-m", "owner/gated", "-n", "2")
    assert (done.returncode, done.stdout) == (1, "")
    (_, headline, reason) = done.stderr.splitlines()
    assert headline == "Pre-flight failed: 1 issue"
    assert "owner/gated is gated. Accept its terms on the Hub and set HF_TOKEN" in reason
    models = [path for path in GatedHub.asked if "/resolve/" in path]
    assert models == ["/owner/gated/resolve/main/config.json"]  # a refusal is not asked for twice
    assert workplace.leftovers() == []
