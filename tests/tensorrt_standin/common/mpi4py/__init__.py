"""Stands for the package that starts TensorRT-LLM's workers."""
