"""Settings of progress bars in the environment with which no bar is drawn, and no engine that draws any imported."""

from __future__ import annotations

import io
import logging
import os
import sys

_log = logging.getLogger(__name__)


def drop_unusable_bar_settings() -> None:
    """Take tqdm's variables out of this process's environment, and its children's, where it cannot do with them."""
    names = [name for name in os.environ if name.startswith("TQDM_")]
    if not names:
        return  # as nearly always; importing tqdm costs the command line
    try:
        from tqdm import tqdm

        with tqdm(total=2, file=io.StringIO()) as bar:
            bar.clear()
    except Exception as error:  # noqa: BLE001 (whatever comes of a value that it did not expect)
        for name in names:
            del os.environ[name]
        for module in [module for module in sys.modules if module.partition(".")[0] == "tqdm"]:
            del sys.modules[module]  # it reads them when it is imported
        _log.warning("%s: ignored, for tqdm cannot use them: %s", ", ".join(names), error)
