"""`llem config`: what this machine can do, and the settings in force. It writes nothing and never fails."""

from __future__ import annotations

import os

from llenergymeasure.cli.display_config import render_capabilities
from llenergymeasure.cli.settings import effective_settings
from llenergymeasure.config.user_config import get_user_config_path
from llenergymeasure.core.capabilities import collect_capabilities


def config_text(*, verbose: bool) -> str:
    """The page that `llem config` prints.

    Args:
        verbose: Tell the sources of all settings, and everything known of each GPU.
    """
    settings = effective_settings(get_user_config_path(), os.environ)
    return render_capabilities(collect_capabilities(), settings, verbose=verbose)
