from __future__ import annotations

import json
import multiprocessing
import os
import threading
import warnings
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llenergymeasure import atomic
from llenergymeasure.domain.experiment import ExperimentResult
from llenergymeasure.domain.study import StudyResult, StudySummary
from llenergymeasure.exceptions import PersistenceError, ResultRescuedError
from llenergymeasure.results import persistence
from llenergymeasure.results.persistence import ResultFileWarning
from result_samples import NOON, make_result, make_rich_result, results

in_one_directory = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@given(result=results)
@in_one_directory
def test_a_result_comes_back_from_json_as_it_was(result: ExperimentResult, tmp_path: Path) -> None:
    assert persistence.from_json(persistence.to_json(result, tmp_path / "result.json")) == result


def test_methods_of_a_result_write_and_read_the_same_files(tmp_path: Path) -> None:
    result = make_rich_result()
    assert ExperimentResult.from_json(result.to_json(tmp_path / "a.json")) == result
    saved = result.save(tmp_path)
    assert persistence.load_result(saved) == persistence.load_result(saved.parent) == result


def test_a_result_gets_a_directory_named_for_model_backend_and_utc_time(tmp_path: Path) -> None:
    in_tokyo = datetime(2026, 2, 18, 23, 30, 5, tzinfo=timezone(timedelta(hours=9)))
    saved = make_result(model_name="Qwen/Qwen2.5-0.5B", start_time=in_tokyo).save(tmp_path / "not" / "there" / "yet")
    assert saved.relative_to(tmp_path) == Path("not/there/yet/qwen2.5-0.5b_pytorch_2026-02-18T14-30-05/result.json")


def test_a_taken_name_gets_a_number_and_nothing_is_overwritten(tmp_path: Path) -> None:
    names = [make_result(total_energy_j=float(i), model_name="gpt2").save(tmp_path).parent.name for i in range(3)]
    assert names == [f"gpt2_pytorch_2026-02-18T12-00-00{suffix}" for suffix in ("", "_1", "_2")]
    energies = [persistence.load_result(tmp_path / name).total_energy_j for name in names]
    assert energies == [0.0, 1.0, 2.0]


@given(st.text(min_size=1))
def test_any_model_name_makes_one_safe_directory_name(model: str) -> None:
    name = persistence.directory_name(make_result(model_name=model))
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name.encode()) < 200
    assert name.isascii()


def test_a_local_path_is_named_for_its_last_part() -> None:
    assert persistence.model_slug("/data/models/My Llama/") == "my_llama"
    assert persistence.model_slug("Qwen/Qwen2.5-0.5B") == "qwen2.5-0.5b"


def test_the_sidecar_is_named_in_the_file_exactly_when_it_is_there(tmp_path: Path) -> None:
    source = tmp_path / "work.parquet"
    source.write_bytes(b"rows")
    extra = tmp_path / "trace.parquet"
    extra.write_bytes(b"samples")
    saved = persistence.save_result(make_result(trace="trace.parquet"), tmp_path / "out", source, [extra])
    assert (saved.parent / "timeseries.parquet").read_bytes() == b"rows"
    assert (saved.parent / "trace.parquet").read_bytes() == b"samples"
    assert persistence.load_result(saved).timeseries == "timeseries.parquet"
    without = persistence.save_result(make_result(timeseries="elsewhere.parquet"), tmp_path / "out")
    assert persistence.load_result(without).timeseries is None


def test_samples_and_texts_are_named_in_the_file_exactly_when_they_are_there(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("run.log", "trace_0.parquet", "outputs.jsonl", "trace_1.parquet")]
    for file in files:
        file.write_bytes(b"content")
    with_files = persistence.load_result(persistence.save_result(make_result(), tmp_path, extra_files=files))
    assert (with_files.trace, with_files.outputs) == ("trace_0.parquet", "outputs.jsonl")
    without = persistence.load_result(persistence.save_result(with_files, tmp_path))
    assert (without.trace, without.outputs) == (None, None)


def test_a_missing_sidecar_is_a_warning(tmp_path: Path) -> None:
    path = make_result(timeseries="timeseries.parquet").to_json(tmp_path / "result.json")
    with pytest.warns(ResultFileWarning, match=r"result\.json.*timeseries\.parquet is missing"):
        result = persistence.from_json(path)
    assert result.timeseries == "timeseries.parquet"


def test_a_file_of_a_newer_minor_version_loads_with_a_warning(tmp_path: Path) -> None:
    path = make_rich_result().to_json(tmp_path / "result.json")
    content = json.loads(path.read_text())
    content |= {"schema_version": "2.7", "novelty": 1}
    content["energy_breakdown"]["refinement"] = {"deep": True}
    path.write_text(json.dumps(content))
    with pytest.warns(ResultFileWarning, match=r"2 unknown field.*2\.7") as caught:
        loaded = persistence.from_json(path)
    assert "energy_breakdown.refinement" in str(caught[0].message)
    assert "novelty" in str(caught[0].message)
    assert loaded == make_rich_result(schema_version="2.7")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[: len(text) // 2], r"not valid JSON .*cut short or damaged"),
        (lambda text: "", r"not valid JSON"),
        (lambda text: "[1, 2]", r"holds a JSON list"),
        (lambda text: "[" * 100_000, r"not valid JSON"),
        (lambda text: text.replace("100.0", "NaN", 1), r"NaN is not a JSON number"),
        (lambda text: text.replace('"2.0"', '"3.1"', 1), r"schema version 3\.1; this release reads 2\.x only"),
        (lambda text: text.replace('"2.0"', '"1.0"', 1), r"schema version 1\.0"),
        (lambda text: text.replace('"2.0"', "2", 1), r"schema_version 2 is not a version"),
        (lambda text: text.replace("schema_version", "scheme", 1), r"has no schema_version"),
        (lambda text: text.replace('"total_tokens": 300', '"total_tokens": "many"'), r"total_tokens: Input should be"),
        (lambda text: text.replace('"experiment_id"', '"experimentid"'), r"experiment_id: Field required"),
        (lambda text: text.replace('"exp-1"', '"\udcff"'), r"not valid JSON"),
        (lambda text: text.replace('"exp-1"', r'"\uD800"'), r"not valid JSON: .*surrogates"),
    ],
)
def test_a_damaged_file_gives_one_clear_error(damage, complaint: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = make_result().to_json(tmp_path / "result.json")
    path.write_bytes(damage(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(PersistenceError, match=complaint) as caught:
        persistence.load_result(path)
    assert str(path) in str(caught.value)


@given(data=st.data())
@in_one_directory
def test_a_cut_or_scrambled_file_never_gives_anything_but_our_error(data: st.DataObject, tmp_path: Path) -> None:
    path = make_rich_result().to_json(tmp_path / "result.json")
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
    else:
        content[place : place + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=40))
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultFileWarning)
        outcome = _read(path)
    assert isinstance(outcome, ExperimentResult) or str(path) in str(outcome)


def _read(path: Path) -> ExperimentResult | PersistenceError:
    try:
        return persistence.from_json(path)
    except PersistenceError as error:
        return error


def test_a_missing_file_and_a_directory_without_a_result_are_named(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match=r"nowhere\.json: No such file"):
        persistence.load_result(tmp_path / "nowhere.json")
    with pytest.raises(PersistenceError, match=r"result\.json: No such file"):
        persistence.load_result(tmp_path)


def test_a_directory_that_cannot_be_made_is_named_with_its_cause(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PersistenceError, match=r"Cannot create .*file") as caught:
        make_result().save(tmp_path / "file" / "results")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_save_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(PersistenceError, match=r"Cannot read .*gone\.parquet"):
        persistence.save_result(make_result(), tmp_path / "out", tmp_path / "gone.parquet")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_result_that_cannot_go_where_it_should_is_saved_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refuge = tmp_path / "refuge"
    with pytest.raises(ResultRescuedError) as caught:
        persistence.save_result_or_rescue(make_result(), tmp_path / "file" / "results", rescue_dir=refuge)
    assert persistence.load_result(caught.value.saved) == make_result()
    assert str(tmp_path / "file" / "results") in str(caught.value)
    assert str(caught.value.saved) in str(caught.value)


def test_the_figures_are_rescued_even_when_the_files_beside_them_are_lost(tmp_path: Path) -> None:
    with pytest.raises(ResultRescuedError) as caught:
        persistence.save_result_or_rescue(
            make_result(trace="trace.parquet"),
            tmp_path / "out",
            extra_files=[tmp_path / "trace.parquet"],
            rescue_dir=tmp_path / "refuge",
        )
    assert persistence.load_result(caught.value.saved) == make_result(trace=None)


def test_a_result_that_fits_nowhere_says_so_for_both_places(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PersistenceError, match=r"file/first.*file/second") as caught:
        persistence.save_result_or_rescue(
            make_result(), tmp_path / "file" / "first", rescue_dir=tmp_path / "file" / "second"
        )
    assert not isinstance(caught.value, ResultRescuedError)


def test_a_study_comes_back_from_its_directory(tmp_path: Path) -> None:
    study = StudyResult(study_id="s-1", started_at=NOON, summary=StudySummary(total_experiments=2, completed=2))
    persistence.to_json(study, tmp_path / "study_summary.json")
    assert persistence.load_study(tmp_path) == study


def test_a_replaced_file_is_old_or_new_and_never_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    contents = {b"a" * 200_000, b"b" * 100_000}
    atomic.write_bytes_atomically(path, b"a" * 200_000)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(30):
        for content in contents:
            atomic.write_bytes_atomically(path, content)
    done.set()
    reader.join()
    assert seen <= contents
    assert os.listdir(tmp_path) == ["result.json"]


def test_a_writer_that_fails_midway_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")

    def break_midway(file) -> None:  # type: ignore[no-untyped-def]
        file.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic.write_atomically(path, break_midway)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_new_files_have_the_permissions_the_user_asked_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = make_result().to_json(tmp_path / "result.json")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def _claim(parent: str, barrier, claimed) -> None:  # type: ignore[no-untyped-def]
    barrier.wait()
    for _ in range(20):
        claimed.put(atomic.make_unique_directory(Path(parent), "run").name)


def test_processes_that_race_for_a_name_get_directories_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, claimed = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_claim, args=(str(tmp_path), barrier, claimed)) for _ in range(4)]
    for racer in racers:
        racer.start()
    names = [claimed.get(timeout=60) for _ in range(80)]
    for racer in racers:
        racer.join()
    assert len(set(names)) == 80
    assert set(names) == {"run", *(f"run_{i}" for i in range(1, 80))}
