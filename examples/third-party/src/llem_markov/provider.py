"""Registers the engine; nothing heavy is imported before the engine is asked for."""

from llenergymeasure.core.backends.registry import BackendFactory, register


@register("markov", needs="llem-markov>=0.1")
def markov_backend() -> BackendFactory:
    """Where a real engine imports its framework."""
    from llem_markov.engine import MarkovBackend

    return lambda clock, model_cache_dir: MarkovBackend(clock)
