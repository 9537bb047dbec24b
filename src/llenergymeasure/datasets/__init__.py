"""Prompts: bundled, from a file, from the Hub, or made to measure.

`loader.load_raw_prompts` reads them without a tokenizer (pre-flight), `loader.load_prompts` turns them into token ids.
"""
