"""What all tests share."""

from importlib.util import find_spec

pytest_plugins = ["tests.nvml.fixtures"]

if find_spec("hypothesis") is not None:  # a machine with a GPU runs its tests without it
    import hypothesis

    # No test is about its own time: machines are shared, and an example that took long proves nothing.
    hypothesis.settings.register_profile("shared machine", deadline=None)
    hypothesis.settings.load_profile("shared machine")
