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
    written = json.loads((RELEASE / name).read_text(encoding="utf-8"))
    assert _what_was_written(record.model_dump(mode="json"), written) == written


def test_a_result_of_2_0_keeps_its_columns_and_its_text(tmp_path: Path) -> None:
    result = load_result(RELEASE / "result.json")
    then = (RELEASE / "results.csv").read_bytes().split(b"\r\n")
    now = to_csv([result], tmp_path / "results.csv").read_bytes().split(b"\r\n")
    assert [line[: len(old)] for line, old in zip(now, then, strict=True)] == then  # new columns come after the old
    text = (RELEASE / "summary.txt").read_text(encoding="utf-8").replace("2.01e-05 EUR", "0.0000201 EUR")
    assert set(text.splitlines()) <= set(result.summary().splitlines())  # what was said then is said in the same words


def _what_was_written(value: Any, written: Any) -> Any:
    """`value` without the fields that a later release added."""
    if isinstance(written, dict):
        return {key: _what_was_written(value[key], inner) for key, inner in written.items()}
    if isinstance(written, list):
        return [_what_was_written(item, inner) for item, inner in zip(value, written, strict=True)]
    return value
