"""Finds a study that was begun and not finished, so that it can be gone on with instead of begun anew."""

from __future__ import annotations

import logging
from pathlib import Path

from llenergymeasure.exceptions import PersistenceError, StudyError
from llenergymeasure.study.lock import locked
from llenergymeasure.study.manifest import MANIFEST_FILE, load_manifest

_log = logging.getLogger(__name__)


def find_unfinished(parent: Path, study_design_hash: str) -> Path | None:
    """The latest directory of an unfinished study of the same design that nobody is running.

    Args:
        parent: Where studies are kept.
        study_design_hash: The design to look for.
    """
    candidates = []
    for path in parent.glob(f"*/{MANIFEST_FILE}"):
        try:
            if study_design_hash not in path.read_text(encoding="utf-8", errors="replace"):
                continue  # most studies are told apart without parsing them
            manifest = load_manifest(path.parent)
        except (OSError, PersistenceError) as error:
            _log.info("Not looked at: %s", error)
            continue
        if manifest.study_design_hash == study_design_hash and manifest.status != "completed":
            candidates.append((manifest.started_at, path.parent))
    for _, directory in sorted(candidates, reverse=True):
        if _is_free(directory):
            return directory
    return None


def _is_free(directory: Path) -> bool:
    try:
        with locked(directory):
            return True
    except (StudyError, PersistenceError):
        return False
