"""Fields of an experiment that reach the loader, and that test_pytorch_settings does not cover, read back from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from transformers import AutoModelForCausalLM  # noqa: E402

from pytorch_models import save_model  # noqa: E402

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ADAPTER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"

MODELLING = """
from transformers import LlamaForCausalLM

class TheirOwnLlama(LlamaForCausalLM):
    pass
"""


def cached(home: Path, repository: str, commit: str, source: Path) -> None:
    """Put a model into a Hub cache as the client would have left it."""
    directory = home / "hub" / ("models--" + repository.replace("/", "--"))
    shutil.copytree(source, directory / "snapshots" / commit)
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text(commit)


def in_a_process(code: str, home: Path, *arguments: object) -> Any:
    """What `code` prints as JSON in a process whose Hub client is offline and lives in `home`."""
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


BUILT_BY = """
import json, sys
from pytorch_models import experiment, loaded
names = []
for trust in (False, True):
    with loaded(experiment(sys.argv[1], trust_remote_code=trust)) as engine:
        names.append(type(engine.parts.model).__name__)
print(json.dumps(names))
"""


def test_trust_remote_code_decides_whose_code_builds_the_model(tmp_path: Path) -> None:
    directory = save_model(tmp_path / "model")
    (directory / "modelling.py").write_text(MODELLING)
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modelling.TheirOwnLlama"}
    (directory / "config.json").write_text(json.dumps(config))
    assert in_a_process(BUILT_BY, tmp_path / "home", directory) == ["LlamaForCausalLM", "TheirOwnLlama"]


ADAPTED = """
import json, sys
from pathlib import Path
from llenergymeasure.config.user_config import UserConfig
from llenergymeasure.runners.job import Job
from llenergymeasure.runners.local import bench_here
from pytorch_models import experiment
home = Path(sys.argv[1])
config = experiment("owner/base", lora={"adapter_id": "owner/adapter"})
with_home = UserConfig.model_validate({"output": {"model_cache_dir": str(home)}})
engine = bench_here(Job(config, with_home, home)).engine
problems = list(engine.preflight(config))
engine.load(config)
layers = sum("lora_A" in name for name, _ in engine.parts.model.named_modules())
elsewhere = list(bench_here(Job(config, UserConfig(), home)).engine.preflight(config))
print(json.dumps([problems, layers > 0, engine.describe().revision, elsewhere]))
"""


def test_lora_adapter_id_is_looked_for_in_the_hubs_cache_of_the_settings(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    adapted = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), peft.LoraConfig(r=4, target_modules=["q_proj"])
    )
    adapted.save_pretrained(tmp_path / "adapter")
    cached(tmp_path / "home", "owner/base", COMMIT, model)
    cached(tmp_path / "home", "owner/adapter", ADAPTER_COMMIT, tmp_path / "adapter")
    problems, has_adapter, revision, elsewhere = in_a_process(ADAPTED, tmp_path / "empty", tmp_path / "home")
    assert (problems, has_adapter, revision) == ([], True, COMMIT)
    assert [problem.partition(":")[0] for problem in elsewhere] == ["model", "lora.adapter_id"]
