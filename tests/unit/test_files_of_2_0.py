"""Files that release 2.0.0 wrote, kept in tests/data: every later 2.x reads them as they were."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from llenergymeasure.results.export import to_csv
from llenergymeasure.results.persistence import load_result, load_study
from llenergymeasure.study.manifest import load_manifest

RELEASE = Path(__file__).parents[1] / "data" / "release_2_0"


@pytest.mark.parametrize(
    ("name", "load"),
    [("result.json", load_result), ("study_summary.json", load_study), ("manifest.json", load_manifest)],
)
def test_a_file_of_2_0_loads_with_every_figure_it_holds(name: str, load: Callable[[Path], BaseModel]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record = load(RELEASE if load is load_manifest else RELEASE / name)
    written = _as_it_is_kept_now(json.loads((RELEASE / name).read_text(encoding="utf-8")))
    assert _what_was_written(record.model_dump(mode="json"), written) == written


def test_a_result_of_2_0_keeps_its_columns_and_its_text(tmp_path: Path) -> None:
    result = load_result(RELEASE / "result.json")
    then = (RELEASE / "results.csv").read_bytes().split(b"\r\n")
    now = to_csv([result], tmp_path / "results.csv").read_bytes().split(b"\r\n")
    assert [line[: len(old)] for line, old in zip(now, then, strict=True)] == then  # new columns come after the old
    text = (RELEASE / "summary.txt").read_text(encoding="utf-8").replace("2.01e-05 EUR", "0.0000201 EUR")
    assert set(text.splitlines()) <= set(result.summary().splitlines())  # what was said then is said in the same words


def test_joules_by_device_and_gpu_memory_of_2_0_are_read_as_they_are_kept_now(tmp_path: Path) -> None:
    result = load_result(RELEASE / "result.json")
    assert result.energy_per_device_j == [100.0, 101.0]
    assert result.energy_by_device_j == {"GPU-0": 100.0, "GPU-1": 101.0}
    snapshot = result.environment_snapshot
    assert snapshot is not None
    assert snapshot.gpu_vram_mb == pytest.approx([85_899.3] * 2, abs=0.1)
    assert snapshot.hardware is not None
    assert snapshot.hardware.gpu.vram_total_mb == pytest.approx(85_899.3, abs=0.1)
    assert load_result(result.to_json(tmp_path / "again.json")) == result  # converted once, not at every reading


@pytest.mark.parametrize(
    ("boundary", "joules"),
    [
        (None, [100.0, 101.0]),
        ({"devices": ["GPU-1", "GPU-0"]}, [101.0, 100.0]),
        ({"devices": ["GPU-1", "GPU-2"]}, [101.0, None, 100.0]),
    ],
)
def test_a_mapping_of_2_0_becomes_the_list_that_its_boundary_orders(
    boundary: dict[str, Any] | None, joules: list[float | None], tmp_path: Path
) -> None:
    written = json.loads((RELEASE / "result.json").read_text(encoding="utf-8"))
    written["measurement_boundary"] = boundary
    (tmp_path / "result.json").write_text(json.dumps(written))
    assert load_result(tmp_path / "result.json").energy_per_device_j == joules


def _as_it_is_kept_now(written: Any) -> Any:
    """What 2.0.0 kept under another name or in another unit, as the fields of today."""
    if by_device := written.get("energy_per_device_j"):
        written |= {"energy_by_device_j": by_device, "energy_per_device_j": list(by_device.values())}
        snapshot = written["environment_snapshot"]
        snapshot["gpu_vram_mb"] = [size * 1.048576 for size in snapshot["gpu_vram_mb"]]
        snapshot["hardware"]["gpu"]["vram_total_mb"] *= 1.048576
    return written


def _what_was_written(value: Any, written: Any) -> Any:
    """`value` without the fields that a later release added."""
    if isinstance(written, dict):
        return {key: _what_was_written(value[key], inner) for key, inner in written.items()}
    if isinstance(written, list):
        return [_what_was_written(item, inner) for item, inner in zip(value, written, strict=True)]
    return value
