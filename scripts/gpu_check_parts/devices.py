"""Which board is meant, what its memory holds, and what is left on it when something breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from gpu_check_parts.lines import Book, Line, percent

LINES = (
    Line("devices.index", "CUDA_VISIBLE_DEVICES as an index: NVML and PyTorch name the same UUIDs"),
    Line("devices.uuid", "as a UUID, whole and shortened: likewise"),
    Line("devices.empty", "empty: no board for either of them"),
    Line("devices.peak", "the engine's peak memory is PyTorch's own to the byte"),
    Line(
        "devices.used",
        "without graphs, the board's used memory grew by PyTorch's peak and the context, 1.5 GB at most",
        11,
    ),
    Line("devices.out-of-memory", "out of memory is a BackendError that says what to lower"),
    Line("devices.repeated", "the same requests of a loaded model twice give the same tokens"),
    Line("devices.after-it", "the next experiment in the same process runs, and has the same tokens as one before it"),
    Line("devices.leftover", "after unloading, PyTorch holds less than 64 MB on the board: cuBLAS keeps a workspace"),
    Line(
        "devices.killed", "10 s after SIGKILL of a study in the middle, none of its processes is left, nor its memory"
    ),
)

ASK = """
import json, torch
from llenergymeasure.core.gpu.visible import cuda_uuids_of_torch
from llenergymeasure.core.host.host import Host
nvml = [gpu.uuid for gpu in Host().visible_gpus()]
torch_uuids = list(cuda_uuids_of_torch(torch)) if torch.version.cuda is not None else None
print(json.dumps({"nvml": nvml, "torch": torch_uuids}))
"""

STUDY = """
model: {model}
dataset: {{synthetic: {{n: 64, input_len: 64, output_len: 64}}}}
decoder: {{preset: deterministic, min_new_tokens: 64}}
precision: {precision}
pytorch: {{device: {device}, batch_size: 4}}
warmup: {{n_warmup: 1, thermal_floor_seconds: 0}}
baseline: {{enabled: false}}
measurement: {{min_duration_seconds: 60}}
sweep: {{random_seed: [1, 2]}}
"""

START_TIMEOUT_S, END_TIMEOUT_S = 36.0, 10.0
SMALL_MB = 64.0


def visible(rig: Any, book: Book) -> None:
    """One fresh process per form, all at once: what is visible is settled when a process starts."""
    uuid = rig.gpu.uuid
    forms = {"index": "0", "uuid": uuid, "short uuid": uuid[:12], "empty": ""}
    asked = {
        form: subprocess.Popen(
            [sys.executable, "-c", ASK],
            env={**rig.environment(), "CUDA_VISIBLE_DEVICES": value},
            stdout=subprocess.PIPE,
            text=True,
        )
        for form, value in forms.items()
    }
    answers = {form: json.loads(child.communicate()[0] or "null") for form, child in asked.items()}
    _judge_visible(book, "devices.index", {"index": answers["index"]}, [uuid])
    _judge_visible(book, "devices.uuid", {form: answers[form] for form in ("uuid", "short uuid")}, [uuid])
    _judge_visible(book, "devices.empty", {"empty": answers["empty"]}, [])


def memory(rig: Any, book: Book) -> None:
    """Peaks, an out-of-memory in the middle, and what runs after it."""
    from llenergymeasure.exceptions import BackendError

    driver, handle = rig.gpu.driver, rig.gpu.handle
    config = rig.config(rig.models.small, n=8, batch=8, input_len=256, output_len=32)
    before_mb = driver.memory_used_mb(handle)
    with rig.session(config) as session:
        engine = session.engine
        engine.reset_peak_memory()
        good = _tokens(engine.generate(session.requests))
        told_mb, (_, peak_mb) = engine.memory().peak_mb, rig.torch_memory_mb()
        grew_mb = driver.memory_used_mb(handle) - before_mb
        _judge_tokens(book, "devices.repeated", _tokens(engine.generate(session.requests)), good)
        with rig.memory_exhausted(engine):
            try:
                engine.generate(session.requests)
                book.judge("devices.out-of-memory", False, "it ran all the same")
            except BackendError as error:
                book.judge("devices.out-of-memory", "Lower pytorch.batch_size" in str(error), str(error))
    _judge_memory(book, told_mb, peak_mb, grew_mb)
    left_mb, _ = rig.torch_memory_mb()
    after_mb = driver.memory_used_mb(handle)
    measured = (
        f"PyTorch holds {left_mb:.3f} MB; the board's used memory is {after_mb - before_mb:+.0f} MB of what it was"
    )
    book.judge("devices.leftover", left_mb < SMALL_MB, measured, left_mb=left_mb, used_mb=after_mb)
    with rig.session(config) as session:
        _judge_tokens(book, "devices.after-it", _tokens(session.engine.generate(session.requests)), good)


def killed_study(rig: Any, book: Book) -> None:
    """SIGKILL to a study's own process while an experiment of it runs."""
    import psutil

    driver, handle = rig.gpu.driver, rig.gpu.handle
    before_mb = driver.memory_used_mb(handle)
    file = rig.directory / "killed.yaml"
    file.write_text(STUDY.format(model=rig.models.small, precision=rig.precision, device=rig.device), encoding="utf-8")
    command = [sys.executable, "-m", "llenergymeasure", "run", str(file), "--output", str(rig.directory / "killed")]
    with (rig.directory / "killed-log.txt").open("wb") as log:
        study = subprocess.Popen(command, env=rig.environment(), stdout=log, stderr=log, start_new_session=True)
        family = _wait_for_work(rig, psutil.Process(study.pid), before_mb)
        os.kill(study.pid, signal.SIGKILL)
        study.wait()
    if not family:
        book.judge("devices.killed", None, f"no experiment of it ran within {START_TIMEOUT_S:.0f} s")
        return
    killed_s = time.monotonic()
    alive = list(family)
    while alive and time.monotonic() - killed_s < END_TIMEOUT_S:
        time.sleep(0.1)
        alive = [process for process in family if _is_alive(process)]
    took_s = time.monotonic() - killed_s
    left_mb = driver.memory_used_mb(handle) - before_mb
    for process in alive:
        process.kill()
    measured = f"{len(alive)} of {len(family)} processes left after {took_s:.1f} s, used memory {left_mb:+.0f} MB"
    book.judge("devices.killed", not alive and left_mb < 100.0, measured, took_s=took_s, left_mb=left_mb)


STEPS = (killed_study, visible, memory)


def _is_alive(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _judge_visible(book: Book, key: str, answers: Mapping[str, Any], expected: list[str]) -> None:
    told = "; ".join(f"{form}: {json.dumps(answer)}" for form, answer in answers.items())
    if None in answers.values():
        book.judge(key, None, f"no answer: {told}")
        return
    nvml = all(answer["nvml"] == expected for answer in answers.values())
    torch = [answer["torch"] for answer in answers.values()]
    if nvml and None in torch:
        book.judge(key, None, f"NVML as expected, PyTorch has no CUDA here: {told}")
        return
    book.judge(key, nvml and all(uuids == expected for uuids in torch), told)


def _tokens(output: Any) -> list[list[int]]:
    return [list(request.token_ids) for request in output.requests]


def _judge_tokens(book: Book, key: str, tokens: list[list[int]], before: list[list[int]]) -> None:
    """Where two runs part, the first place in each request tells whether it was at once or grew from a near tie."""
    pairs = [zip(now, then, strict=True) for now, then in zip(tokens, before, strict=True)]
    parted = [next((place for place, (a, b) in enumerate(pair) if a != b), None) for pair in pairs]
    differing = [place for place in parted if place is not None]
    measured = f"{len(differing)} of {len(tokens)} requests differ"
    if differing:
        measured += f", from token {', '.join(map(str, differing))} of {len(tokens[0])} on"
    book.judge(key, not differing, measured, parted_at=parted)


def _judge_memory(book: Book, told_mb: float | None, peak_mb: float, grew_mb: float) -> None:
    if not peak_mb or told_mb is None:
        for key in ("devices.peak", "devices.used"):
            book.judge(key, None, "PyTorch has allocated nothing on a GPU here")
        return
    book.judge("devices.peak", abs(told_mb - peak_mb) < 1e-6, f"{told_mb:.3f} MB told, {peak_mb:.3f} MB by PyTorch")
    more_mb = grew_mb - peak_mb
    measured = (
        f"used {grew_mb:.0f} MB more, peak {peak_mb:.0f} MB: {more_mb:+.0f} MB ({percent(more_mb, peak_mb):+.1f} %)"
    )
    book.judge("devices.used", 0.0 <= more_mb <= 1500.0, measured, grew_mb=grew_mb, peak_mb=peak_mb)


def _wait_for_work(rig: Any, study: Any, before_mb: float) -> list[Any]:
    """The study's processes once one of them works (on a board: has memory there); empty: none did in time."""
    driver, handle = rig.gpu.driver, rig.gpu.handle
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s and study.is_running():
        time.sleep(0.2)
        family = study.children(recursive=True)
        if family and (rig.rehearsal or driver.memory_used_mb(handle) > before_mb + 1000.0):
            time.sleep(1.0)
            return study.children(recursive=True)
    return []
