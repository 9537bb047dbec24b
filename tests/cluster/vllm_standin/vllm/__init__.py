"""Stands where vLLM is imported from; what it brings instead of `VLLMBackend` is in `entrypoints/llm.py`."""
