"""A real file system that really runs full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llenergymeasure.exceptions import PersistenceError, ResultRescuedError
from llenergymeasure.results import persistence
from result_samples import make_result, make_rich_result


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB with one page left."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
        )
        if shutil.which("mount")
        else None
    )
    if mounted is None or mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip() if mounted else 'no mount command'}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave_pages: int) -> None:
    stat = os.statvfs(disk)
    (disk / "filler").write_bytes(b"x" * (stat.f_bsize * (stat.f_bavail - leave_pages)))


def test_a_full_disk_is_named_and_leaves_no_half_written_file(small_disk: Path) -> None:
    fill(small_disk, leave_pages=1)
    result = make_rich_result(effective_config={"long": "x" * 20_000})
    with pytest.raises(
        PersistenceError, match=r"Cannot write .*result\.json: No space left on device.*Free some space"
    ):
        persistence.save_result(result, small_disk)
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


def test_a_result_measured_on_a_full_disk_is_saved_elsewhere(small_disk: Path, tmp_path: Path) -> None:
    fill(small_disk, leave_pages=1)
    result = make_rich_result(effective_config={"long": "x" * 20_000})
    with pytest.raises(ResultRescuedError) as caught:
        persistence.save_result_or_rescue(result, small_disk, rescue_dir=tmp_path / "refuge")
    assert persistence.load_result(caught.value.saved) == result


def test_a_result_is_rescued_without_the_sidecar_that_filled_the_disk(small_disk: Path, tmp_path: Path) -> None:
    sidecar = tmp_path / "work.parquet"
    sidecar.write_bytes(b"x" * 200_000)
    with pytest.raises(ResultRescuedError) as caught:
        persistence.save_result_or_rescue(make_result(), small_disk, sidecar, rescue_dir=small_disk / "refuge")
    assert persistence.load_result(caught.value.saved) == make_result()


def test_replacing_a_file_on_a_full_disk_keeps_the_old_one(small_disk: Path) -> None:
    path = make_result().to_json(small_disk / "result.json")
    fill(small_disk, leave_pages=0)
    with pytest.raises(PersistenceError, match="No space left"):
        make_rich_result(effective_config={"long": "x" * 20_000}).to_json(path)
    assert persistence.from_json(path) == make_result()


def test_parquet_on_a_full_disk_is_our_error_too(small_disk: Path) -> None:
    fill(small_disk, leave_pages=0)
    with pytest.raises(PersistenceError, match=r"Cannot write .*results\.parquet: .*[Nn]o space left"):
        persistence.to_parquet([make_rich_result()], small_disk / "results.parquet")
    assert [path.name for path in small_disk.iterdir()] == ["filler"]
