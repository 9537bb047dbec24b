"""The page's parts, and charts as part of a page."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import matplotlib
import pytest
import yaml
from matplotlib.figure import Figure
from pydantic import BaseModel

from llenergymeasure.config.base import nested_model, portable_data
from llenergymeasure.config.loader import load_experiment_config, load_study_config
from llenergymeasure.config.models import ExperimentConfig, StudyConfig
from llenergymeasure.constants import VERSION
from llenergymeasure.results.report import repeat
from llenergymeasure.results.report.charts import SERIES, Spot, chart, margins
from llenergymeasure.results.report.factors import factors
from llenergymeasure.results.report.page import (
    Markup,
    Part,
    Section,
    Tile,
    bar,
    code,
    facts,
    figure,
    link,
    markup,
    paragraph,
    render_page,
    table,
    tiles,
)
from llenergymeasure.results.report.power import thinned
from llenergymeasure.results.statistics import summarise_configurations
from report_checks import read_page
from report_studies import run_figures, saved_study, study_of
from result_samples import NOON

HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\x00"
REPOSITORY = Path(__file__).parents[2]


def page_of(*parts: Markup) -> str:
    return render_page("T", "kicker", [Section("One", Markup("".join(parts)))])


def test_text_is_text_wherever_it_enters() -> None:
    parts = [
        paragraph(HOSTILE),
        code(HOSTILE, HOSTILE),
        table([HOSTILE, "n"], [[HOSTILE, HOSTILE]], HOSTILE),
        facts([(HOSTILE, HOSTILE)]),
        tiles([Tile(HOSTILE, HOSTILE, HOSTILE)]),
        bar([Part(HOSTILE, 0.5, 0)], HOSTILE),
        link(HOSTILE, "#one"),
        figure(Markup(), HOSTILE, Markup()),
    ]
    html = render_page(HOSTILE, HOSTILE, [Section("One", Markup("".join(parts)))], paragraph(HOSTILE))
    assert read_page(html).text.count("<script>alert(1)") >= 12
    assert "\x00" not in html
    assert "\x1b" not in html


def test_what_is_escaped_once_is_not_escaped_again() -> None:
    assert markup(markup("a < b")) == "a &lt; b"


def test_sections_whose_titles_come_to_the_same_name_are_told_apart() -> None:
    titles = ["Energy: a/b", "Energy: a-b", "Energy: a b", "Energy: a b 2"]
    page = read_page(render_page("t", "k", [Section(title, paragraph("x")) for title in titles]))
    assert len({address for address in page.addresses if address.startswith("#")}) == len(titles)


def test_a_page_forbids_itself_scripts_and_the_network() -> None:
    assert "default-src 'none'; style-src 'unsafe-inline'" in page_of()
    assert "http" not in page_of().replace("http-equiv", "")


@pytest.mark.parametrize(
    ("value", "unit"), [("0.412 ± 0.021 J/token", "J/token"), ("9 of 12", ""), ("6 m 32 s", ""), ("not measured", "")]
)
def test_only_a_unit_is_set_smaller(value: str, unit: str) -> None:
    html = tiles([Tile("label", value)])
    assert ('class="unit"' in html) == bool(unit)
    assert not unit or f">{unit}</span>" in html


def draw(figure: Figure, width_pt: float) -> Sequence[Spot]:
    axes = figure.subplots()
    margins(figure, left=40, right=10, top=20, bottom=30)
    axes.plot([0.0, 1.0], [0.0, 2.0], color=SERIES[0], label="$x^{2$ and <b> 漢字")
    axes.legend()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 2)
    return [Spot(axes, 1.0, 2.0, "the <best> point", SERIES[1])]


def test_a_chart_is_a_part_of_the_page_that_anybody_can_read() -> None:
    html = page_of(chart("one", draw, 200, "Title & more", "What it <shows>"), chart("two", draw, 200, "T", "D"))
    page = read_page(html)
    assert page.tags.count("svg") == 4  # wide and narrow
    assert "$x^{2$ and <b> 漢字" in page.text  # text, and no formula
    assert "What it <shows>" in page.text
    assert "the <best> point" in page.text
    assert "var(--s0)" in html
    assert "#f1e0" not in html


def test_a_spot_is_where_its_figures_are() -> None:
    """In a chart 720 points wide and 200 high the upper right corner of the axes is 10 and 20 from the edges."""
    html = chart("one", draw, 200, "T", "D")
    assert 'tabindex="0" role="img" aria-label="the &lt;best&gt; point" cx="710.0" cy="20.0"' in html


def test_the_same_figures_give_the_same_bytes_whatever_the_user_has_set() -> None:
    before = chart("one", draw, 200, "T", "D")
    with matplotlib.rc_context({"lines.linewidth": 9.0, "svg.fonttype": "path", "axes.grid": False}):
        settings = dict(matplotlib.rcParams)
        assert chart("one", draw, 200, "T", "D") == before
        assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("backend", ["", "of-a-notebook"])
def test_nothing_of_matplotlib_is_loaded_before_a_chart_is_drawn_and_never_pyplot(tmp_path: Path, backend: str) -> None:
    directory = saved_study(tmp_path / "study", study_of(range(1, 3), cycles=1))
    program = (
        "import os, sys; from pathlib import Path\n"
        "import llenergymeasure.cli, llenergymeasure.study.runner, llenergymeasure.runners.job\n"
        "from llenergymeasure.results.report import experiment, study, write\n"
        "assert 'matplotlib' not in sys.modules\n"
        f"write.write_report(Path({str(directory)!r}))\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
        f"assert os.environ['MPLBACKEND'] == {backend!r}\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={**os.environ, "MPLBACKEND": backend})


def test_thinning_keeps_both_ends_and_every_peak() -> None:
    times_s = [0.01 * i for i in range(100_000)]
    power_w = [100.0] * 100_000
    power_w[54_321], power_w[77_777] = 700.0, 5.0
    few_s, few_w = thinned(times_s, power_w, columns=100)
    assert len(few_s) <= 202
    assert (few_s[0], few_s[-1]) == (times_s[0], times_s[-1])
    assert dict(zip(few_s, few_w, strict=True))[times_s[54_321]] == 700.0
    assert dict(zip(few_s, few_w, strict=True))[times_s[77_777]] == 5.0


def test_the_citation_is_that_of_the_repository() -> None:
    cited = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert cited["title"] == repeat.CITATION_TITLE
    assert [author["name"] for author in cited["authors"]] == [repeat.CITATION_AUTHOR]
    entry = repeat.bibtex(VERSION, NOON)
    assert f"version = {{{VERSION}}}" in entry
    assert entry.count("{") == entry.count("}")


def test_the_file_of_an_experiment_is_the_experiment(tmp_path: Path) -> None:
    config = ExperimentConfig.model_validate(
        {"model": "m: #1", "precision": "bf16", "pytorch": {"batch_size": 8}, "decoder": {"temperature": 0.5}}
    )
    file = tmp_path / "experiment.yaml"
    file.write_text(repeat.as_yaml(repeat.as_said(config.model_dump(mode="json"))))
    assert load_experiment_config(file) == config


def test_what_was_switched_off_stays_off_in_the_file(tmp_path: Path) -> None:
    off = {"energy": {"backend": None}}
    config = ExperimentConfig.model_validate({"model": "m", **off})
    file = tmp_path / "file.yaml"
    file.write_text(repeat.as_yaml(repeat.as_said(config.model_dump(mode="json"))))
    assert load_experiment_config(file) == config
    mixed = study_of(range(1, 2)).experiments + study_of(range(2, 3), **off).experiments
    for experiments in (mixed, mixed[2:]):
        study = StudyConfig(name="off", experiments=experiments)
        file.write_text(repeat.as_yaml(repeat.study_file(portable_data(study), "off")))
        assert load_study_config(file).experiments == experiments


def test_every_setting_whose_null_switches_something_off_is_known() -> None:
    def nulls(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for name, field in model.model_fields.items():
            if type(None) in get_args(field.annotation) and field.get_default(call_default_factory=True) is not None:
                yield (*path, name)
            if (inner := nested_model(field.annotation)) is not None:
                yield from nulls(inner, (*path, name))

    assert tuple(nulls(ExperimentConfig)) == repeat.SWITCHED_OFF


def test_the_file_of_a_study_is_the_study(tmp_path: Path) -> None:
    study = study_of(range(1, 4), decoder={"temperature": 0.5})
    content = repeat.study_file(portable_data(study), study.name)
    file = tmp_path / "study.yaml"
    file.write_text(repeat.as_yaml(content))
    assert load_study_config(file).experiments == study.experiments
    assert load_study_config(file).execution == study.execution
    assert content["decoder"]["temperature"] == 0.5
    assert content["experiments"][0] == {"precision": "fp32", "pytorch": {"batch_size": 1}}


def test_a_factor_is_what_changes_when_nothing_else_does() -> None:
    study = study_of(range(1, 4))
    from llenergymeasure.config.base import portable_data
    from llenergymeasure.study.plan import plan_runs

    statistics = summarise_configurations(map(run_figures, plan_runs(study)))
    found = {factor.name: factor for factor in factors(portable_data(study)["experiments"], statistics)}
    assert set(found) == {"precision", "pytorch.batch_size"}
    to_three = found["pytorch.batch_size"].levels[2]
    assert to_three.label == "3"
    assert to_three.energy is not None
    assert to_three.speed is not None
    assert to_three.energy.mean == pytest.approx(1 / 3)
    assert to_three.speed.mean == pytest.approx(3)
    assert to_three.energy.pairs == 2  # in fp32 and in bf16
    to_bf16 = found["precision"].levels[1]
    assert to_bf16.energy is not None
    assert to_bf16.energy.mean == pytest.approx(0.8)
    assert to_bf16.energy.pairs == 3
    # Three pairs of three cycles each, 1 % apart: six parts of 1e-4 / 3, Welch's 12 degrees of freedom, t = 2.1788.
    half_width = 2.1788 * math.sqrt(6 * 1e-4 / 3) / 3
    assert to_bf16.energy.ci95_low == pytest.approx(0.8 * math.exp(-half_width), rel=1e-5)
    assert to_bf16.energy.ci95_high == pytest.approx(0.8 * math.exp(half_width), rel=1e-5)
    first = found["precision"].levels[0].energy
    assert first is not None
    assert first.ci95_low is None  # a level against itself


def test_settings_that_change_together_are_one_factor_and_without_a_pair_there_is_no_effect() -> None:
    configs = [
        ExperimentConfig(model="m", precision="fp32", n=10),
        ExperimentConfig(model="m", precision="bf16", n=20),
        ExperimentConfig(model="x", precision="bf16", n=20),
    ]
    found = factors([config.model_dump(mode="json") for config in configs], [])
    assert sorted(factor.name for factor in found) == ["model", "n with precision"]
    assert all(level.energy is None for factor in found for level in factor.levels)
