"""What the runners of child processes do without starting any."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from energy_fakes import measured, steady
from llenergymeasure.config.models import ExperimentConfig
from llenergymeasure.core.timeseries import Artefacts, merge_timeseries, write_timeseries
from llenergymeasure.datasets.types import WHOLE, DatasetIdentity, Prompt, PromptSet, Shard
from llenergymeasure.runners.local import merge_artefacts, process_environments
from llenergymeasure.runners.output import ChildLog
from llenergymeasure.runners.process import describe_exit
from llenergymeasure.runners.supervise import Interrupt, signals_as


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (-9, "killed by signal 9 (SIGKILL): out of memory? The kernel's log (dmesg) tells"),
        (-11, "segmentation fault (signal 11)"),
        (-6, "aborted (signal 6): a failed assertion in a native library"),
        (-4, "killed by signal 4 (SIGILL)"),
        (-63, "killed by signal 63"),
        (3, "ended with exit code 3 and without a result"),
        (None, "ended in an unknown way"),
    ],
)
def test_exit_codes_in_words(code: int | None, words: str) -> None:
    assert describe_exit(code) == words


def keep(log: ChildLog, output: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, output)
    os.close(writing)
    log.drain(os.fdopen(reading, "rb"))


@given(output=st.binary(max_size=400), head=st.integers(0, 100), tail=st.integers(0, 100))
def test_log_keeps_beginning_and_end_of_any_output(
    tmp_path_factory: pytest.TempPathFactory, output: bytes, head: int, tail: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "child.log"
    keep(ChildLog(path, head_bytes=head, tail_bytes=tail), output)
    kept = path.read_bytes()
    assert kept.startswith(output[:head])
    if len(output) <= head + tail:
        assert kept == output
    else:
        assert kept.endswith(output[len(output) - tail :])
        assert f"{len(output) - head - tail} bytes left out".encode() in kept


def test_last_line_is_the_last_one_before_pythons_crash_dump(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "child.log")
    keep(log, b"CUDA error: device-side assert\n\nFatal Python error: Aborted\n  File ...\n")
    assert log.last_line() == "CUDA error: device-side assert"


def test_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        with signals_as(interrupt):
            os.kill(os.getpid(), signal.SIGHUP)
        assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_signals_are_urgent() -> None:
    interrupt = Interrupt()
    with signals_as(interrupt):
        os.kill(os.getpid(), signal.SIGINT)
        assert (interrupt.requested, interrupt.urgent) == (True, False)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.urgent


def prompt_set(count: int) -> PromptSet:
    prompts = tuple(
        Prompt(index, None, (1, 2), truncated=index % 3 == 0, max_new_tokens=None) for index in range(count)
    )
    identity = DatasetIdentity("x", "0" * 64, count, "file")
    return PromptSet(prompts, identity, truncated_count=sum(prompt.truncated for prompt in prompts))


@given(prompts=st.integers(1, 50), processes=st.integers(1, 8))
def test_shards_are_disjoint_and_together_everything(prompts: int, processes: int) -> None:
    whole = prompt_set(prompts)
    shards = [Shard(index, processes).of(whole) for index in range(processes)]
    assert sorted(prompt.index for shard in shards for prompt in shard.prompts) == list(range(prompts))
    assert sum(shard.truncated_count for shard in shards) == whole.truncated_count
    assert {shard.identity for shard in shards} == {whole.identity}
    sizes = [len(shard.prompts) for shard in shards]
    assert max(sizes) - min(sizes) <= 1
    assert WHOLE.of(whole) == whole


def test_processes_on_the_cpu_divide_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = ExperimentConfig.model_validate({"model": "a", "pytorch": {"device": "cpu", "num_processes": 2}})
    cores = len(os.sched_getaffinity(0))
    assert process_environments(config, 2) == [{"OMP_NUM_THREADS": str(max(1, cores // 2))}] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert process_environments(config, 2) == [{"OMP_NUM_THREADS": "3"}] * 2


def test_files_of_processes_become_one_set(tmp_path: Path) -> None:
    parts = []
    for index, devices in enumerate((["GPU-a"], ["GPU-b", "GPU-a"])):
        directory = tmp_path / str(index)
        directory.mkdir()
        samples = {device: steady(100.0 * (index + 1), 0.0, 2.0) for device in devices}
        timeseries = write_timeseries(measured(samples, end_s=2.0), directory / "timeseries.parquet")
        (directory / "trace.parquet").write_text(f"trace {index}")
        (directory / "outputs.jsonl").write_text("".join(f'{{"index": {n}}}\n' for n in range(index, 5, 2)))
        parts.append(Artefacts(timeseries, directory / "trace.parquet", directory / "outputs.jsonl"))
    merged = merge_artefacts(parts, tmp_path)
    assert merged.outputs is not None
    assert [json.loads(line)["index"] for line in merged.outputs.read_text().splitlines()] == [0, 1, 2, 3, 4]
    assert [path.name for path in merged.beside_timeseries] == ["trace_0.parquet", "outputs.jsonl", "trace_1.parquet"]
    assert merged.timeseries is not None
    table = pq.read_table(merged.timeseries)
    assert json.loads(table.schema.metadata[b"devices"]) == ["GPU-a", "GPU-b"]
    rows = [(row["gpu_index"], row["timestamp_s"], round(row["power_w"])) for row in table.to_pylist()]
    assert rows == [(0, 0.0, 100), (0, 1.0, 100), (1, 0.0, 200), (1, 1.0, 200)]


def test_texts_with_line_separators_of_their_own_stay_whole_when_files_are_merged(tmp_path: Path) -> None:
    texts = ["one\u2028two", "three\u0085four", "five\u2029six"]
    parts = []
    for index in range(2):
        path = tmp_path / f"outputs_{index}.jsonl"
        path.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts[index::2]), "utf-8")
        parts.append(Artefacts(outputs=path))
    merged = merge_artefacts(parts, tmp_path)
    assert merged.outputs is not None
    with merged.outputs.open(encoding="utf-8") as lines:
        assert [json.loads(line) for line in lines] == texts


def test_time_series_of_processes_on_one_cpu_is_that_of_the_first(tmp_path: Path) -> None:
    files = [
        write_timeseries(measured({"cpu": steady(watts, 0.0, 1.0)}, end_s=1.0), tmp_path / f"{watts}.parquet")
        for watts in (40.0, 41.0)
    ]
    table = pq.read_table(merge_timeseries(files, tmp_path / "merged.parquet"))
    assert [(row["gpu_index"], row["power_w"]) for row in table.to_pylist()] == [(None, 40.0)]
