"""Engines that are built ahead and kept: built once, whole or absent, and told apart by everything that makes them."""

from __future__ import annotations

import fcntl
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llenergymeasure.core.backends.tensorrt.engine_cache import CONTENTS, cached_engine, entry_name, files_identity
from llenergymeasure.exceptions import BackendError
from mounts import tmpfs
from tensorrt_bench import TensorRTBench, answer_of

LOADED = """
told = []
for length in {lengths}:
    engine = get_backend("tensorrt")
    engine.load(experiment(tensorrt={{"max_input_len": length}}))
    told.append(engine.describe().settings["tensorrt.engine"])
    engine.unload()
tell(told)
"""
KEY = {"settings": {"max_batch_size": 8}, "tensorrt_llm": "1.2.1"}


def logged(bench: TensorRTBench) -> TensorRTBench:
    """One that keeps a log of what is built."""
    return replace(bench, environ={"TRTLLM_STANDIN_BUILDS": str(bench.home / "builds")})


def builds(bench: TensorRTBench) -> int:
    log = bench.home / "builds"
    return len(log.read_text().splitlines()) if log.exists() else 0


def entries(bench: TensorRTBench) -> list[Path]:
    return [path for path in (bench.home / ".llenergymeasure/trt-engines").iterdir() if path.is_dir()]


def write(into: Path) -> None:
    (into / "rank0.engine").write_bytes(b"engine")


def never(into: Path) -> None:
    raise AssertionError("it was built again")


def test_two_processes_at_once_build_one_engine(builder: TensorRTBench) -> None:
    bench = logged(builder)
    running = [bench.start(LOADED.format(lengths=[64])) for _ in range(2)]
    assert [answer_of(process) for process in running] == [["built ahead"]] * 2
    assert builds(bench) == 1
    (entry,) = entries(bench)
    assert (entry / CONTENTS).is_file()


def test_another_limit_is_another_engine_and_the_same_is_found_again(builder: TensorRTBench) -> None:
    bench = logged(builder)
    bench.told(LOADED.format(lengths=[64, 128, 64]))
    assert builds(bench) == 2
    assert len(entries(bench)) == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "lost", "unlisted", "no list"])
def test_a_damaged_entry_is_noticed_and_built_anew(tmp_path: Path, damage: str) -> None:
    entry = cached_engine(tmp_path, KEY, write)
    assert cached_engine(tmp_path, KEY, never) == entry
    engine = entry / "rank0.engine"
    match damage:
        case "cut":
            os.truncate(engine, 3)
        case "changed":
            engine.write_bytes(b"enginE")
        case "lost":
            engine.unlink()
        case "unlisted":
            (entry / "rank1.engine").touch()
        case "no list":
            (entry / CONTENTS).unlink()
    assert cached_engine(tmp_path, KEY, write) == entry
    assert engine.read_bytes() == b"engine"
    assert cached_engine(tmp_path, KEY, never) == entry


def test_a_build_that_fails_leaves_nothing_and_its_own_error(tmp_path: Path) -> None:
    def fail(into: Path) -> None:
        write(into)
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        cached_engine(tmp_path, KEY, fail)
    assert [path.name for path in tmp_path.iterdir()] == [f"{entry_name(KEY)}.lock"]


def test_what_a_killed_builder_leaves_is_removed_and_its_lock_is_free(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:

        def hang(into: Path) -> None:
            write(into)
            (tmp_path / "building").touch()
            time.sleep(60)

        cached_engine(tmp_path, KEY, hang)
        os._exit(1)
    while not (tmp_path / "building").exists():
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    entry = cached_engine(tmp_path, KEY, write)
    assert not list(tmp_path.glob(".*.building"))
    assert cached_engine(tmp_path, KEY, never) == entry


def test_a_full_disk_is_told_and_nothing_half_is_left(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "volume", "size=1m") as volume:
        with pytest.raises(BackendError, match=r"the built engine cannot be kept: .*full"):
            cached_engine(volume, KEY, lambda into: (into / "rank0.engine").write_bytes(bytes(4_000_000)))
        assert [path.name for path in volume.iterdir()] == [f"{entry_name(KEY)}.lock"]


def test_keys_differ_by_each_of_their_parts_and_not_by_order() -> None:
    assert entry_name(KEY) == entry_name(dict(reversed(KEY.items())))
    assert entry_name(KEY) != entry_name({**KEY, "tensorrt_llm": "1.2.0"})
    assert entry_name(KEY) != entry_name({**KEY, "settings": {"max_batch_size": 9}})


def test_a_checkpoint_that_has_changed_is_another_one(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    before = files_identity(tmp_path)
    assert files_identity(tmp_path) == before
    os.utime(weights, ns=(0, 0))
    assert files_identity(tmp_path) != before


def test_a_worker_that_the_build_forked_does_not_keep_the_lock(tmp_path: Path) -> None:
    children: list[int] = []

    def forking(into: Path) -> None:
        write(into)
        if (child := os.fork()) == 0:
            signal.pause()
        children.append(child)

    cached_engine(tmp_path, KEY, forking)
    try:
        lock = os.open(tmp_path / f"{entry_name(KEY)}.lock", os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)
    finally:
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
