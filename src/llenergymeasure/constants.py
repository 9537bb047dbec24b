"""Values that several layers share and that never depend on the machine."""

from __future__ import annotations

from typing import Final

VERSION: Final = "2.0.0"
"""The package's version, and the only place that holds it (the build reads it from here)."""

SCHEMA_VERSION: Final = "2.0.0"
"""Schema of the internal per-process records (`RawProcessResult`)."""

RESULT_SCHEMA_VERSION: Final = "2.0"
"""Schema of the files a user sees: `result.json`, `study_summary.json`, `manifest.json`."""

APP_NAME: Final = "llenergymeasure"
"""Directory name under the platform's config, data and cache directories."""

BUILTIN_MODEL_PREFIX: Final = "builtin/"
"""Model names that the package makes itself instead of looking them up."""
