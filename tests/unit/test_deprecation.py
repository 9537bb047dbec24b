"""An export leaves `__all__` only after one minor release in which it warns."""

from __future__ import annotations

from pathlib import Path

import pytest

import llenergymeasure

RELEASED = Path(__file__).parent.parent / "golden" / "exports-2.0.txt"
"""Names exported by the last minor release; written anew when one is made."""


def test_every_export_of_the_last_minor_release_can_still_be_had() -> None:
    for name in RELEASED.read_text().split():
        if name in llenergymeasure.__all__:
            assert getattr(llenergymeasure, name) is not None
        else:
            with pytest.deprecated_call(match=name):
                assert getattr(llenergymeasure, name) is not None


def test_a_deprecated_export_warns_each_time_and_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llenergymeasure._DEPRECATED, "VERSION", ("llenergymeasure.constants", "use __version__"))
    for _ in range(2):
        with pytest.deprecated_call(match="next minor release; use __version__"):
            assert llenergymeasure.VERSION == "2.0.0"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="run_experimant"):
        _ = llenergymeasure.run_experimant
