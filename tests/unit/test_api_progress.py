"""Progress for callers from Python: none unless asked for, and then as on the command line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import llenergymeasure as llem
from llenergymeasure.exceptions import PreFlightError
from study_fakes import Stage, study_of

NOWHERE = "/no/such/model"


def test_an_experiment_is_drawn_on_request_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for progress, drawn in ((False, ""), (True, "Experiment: model / pytorch / bf16\n")):
        with pytest.raises(PreFlightError):
            llem.run_experiment(model=NOWHERE, progress=progress)
        out, err = capsys.readouterr()
        assert (out, err) == ("", drawn)


def test_a_study_is_drawn_on_request_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of("somebody/model")
    Stage(tmp_path).runner(study).run()
    capsys.readouterr()
    for progress, drawn in ((False, ""), (True, r"Study: 1 run, 1 of them finished before\n  in .*\n  Note: .*\n")):
        llem.run_study(study, resume=tmp_path, progress=progress)
        out, err = capsys.readouterr()
        assert out == ""
        assert re.fullmatch(drawn, err)
