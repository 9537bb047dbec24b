"""Runs and studies against each other: `python -m llenergymeasure.results.compare BASELINE CANDIDATE …`."""
