"""The check of a built documentation site finds what a reader would stumble over."""

from __future__ import annotations

from pathlib import Path

import pytest

from check_site import main

WHOLE = {
    "index.html": '<a href="guides/run.html#flags">run</a><a href="https://a.example/">more</a><link href="site.css">',
    "guides/run.html": '<h2 id="flags">Flags</h2><a href="../index.html">back</a><a href="#flags">up</a>',
    "site.css": "a { background: url('data:image/svg+xml;utf8,<svg/>') }",
}


def check(directory: Path, files: dict[str, str]) -> int:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return main([str(directory)])


def test_a_whole_site_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, WHOLE) == 0
    assert capsys.readouterr().out.endswith("2 pages, 4 links, 0 problems\n")


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ('<a href="guides/nowhere.html">x</a>', "extra.html: guides/nowhere.html leads to nothing"),
        ('<a href="guides/run.html#gone">x</a>', "extra.html: guides/run.html#gone leads to no anchor"),
        ('<a href="guides/">x</a>', "extra.html: guides/ leads to nothing"),
        ('<a href="#gone">x</a>', "extra.html: #gone leads to no anchor"),
        (
            '<script src="https://cdn.example/x.js"></script>',
            "extra.html: loads https://cdn.example/x.js from elsewhere",
        ),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "extra.html: loads //cdn.example/x.css from elsewhere"),
        ('<img src="plot.png">', "extra.html: loads plot.png, which is missing"),
    ],
)
def test_what_is_wrong_is_named(page: str, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, WHOLE | {"extra.html": page}) == 1
    assert problem in capsys.readouterr().out.splitlines()


def test_a_font_from_elsewhere_in_a_style_sheet_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    style = '@import "https://fonts.example/roboto.css";'
    assert check(tmp_path, WHOLE | {"site.css": style}) == 1
    assert "site.css: loads https://fonts.example/roboto.css from elsewhere" in capsys.readouterr().out


def test_a_directory_without_pages_fails(tmp_path: Path) -> None:
    assert check(tmp_path, {}) == 1
