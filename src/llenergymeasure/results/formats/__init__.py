"""Results in the formats of other tools: `python -m llenergymeasure.results.formats DIR --to FORMAT`."""
