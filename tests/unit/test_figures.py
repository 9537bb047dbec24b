"""A figure is declared once; aggregation and export follow the declaration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llenergymeasure.domain.base import Column, Merge, Record, columns_in, largest, merge_figures, merge_records, total
from llenergymeasure.domain.experiment import ExperimentResult, RawProcessResult
from llenergymeasure.results.export import FLAT_COLUMNS
from result_samples import make_record


class Reading(Record):
    """Two figures and a name."""

    energy_j: Annotated[float | None, Merge(total)] = None
    hottest_c: Annotated[float | None, Merge(largest)] = None
    sensor: str = "a"


def test_a_record_merges_field_by_field_and_what_has_no_rule_is_the_first_ones() -> None:
    parts = [Reading(energy_j=1.0, hottest_c=40.0), Reading(energy_j=2.0, sensor="b")]
    assert merge_records(parts) == Reading(energy_j=3.0, hottest_c=40.0, sensor="a")
    assert merge_records([*parts, Reading(hottest_c=50.0)]).energy_j is None  # a sum with an unknown part is unknown


def test_a_new_figure_of_a_result_needs_no_more_than_its_declaration() -> None:
    class NextResult(ExperimentResult):
        """A result of a later release."""

        window_of_all_sec: Annotated[float | None, Merge(total, "timestamps.duration_sec")] = None
        counted_sec: Annotated[float | None, Merge(total, "timestamps.duration_sec", counted=True)] = None

    records = [make_record(0, duration_s=10.0), make_record(1, duration_s=12.0)]
    figures = merge_figures(NextResult, records, counted=records[1:])
    assert (figures["window_of_all_sec"], figures["counted_sec"]) == (22.0, 12.0)


def test_what_process_and_experiment_both_measure_is_described_and_merged_in_the_same_words() -> None:
    ours, theirs = ExperimentResult.model_fields, RawProcessResult.model_fields
    about_itself = {"schema_version", "experiment_id", "measurement_config_hash", "reproducibility_notes"}
    per_process = {"energy_per_device_j", "model_name", "config_name"}  # other types, as a process always knows them
    both = ours.keys() & theirs.keys() - about_itself - per_process
    assert "energy_audit" in both
    for name in both:
        assert (ours[name].description, ours[name].metadata) == (theirs[name].description, theirs[name].metadata)


def test_columns_stand_where_they_were_declared_to_and_no_place_is_given_twice() -> None:
    assert [column.position for column in FLAT_COLUMNS] == list(range(1, len(FLAT_COLUMNS) + 1))
    declared = Field(description="Peak."), (Column(2, "W"), Column(3, "W")), Column(1, "J"), Merge(total)
    assert [column.position for column in columns_in(declared)] == [2, 3, 1]
