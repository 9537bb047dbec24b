"""Material and grammar of the bundled prompts; `scripts/build_prompts.py` puts them together."""
