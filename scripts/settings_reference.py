"""The tables of docs/settings.md, and what keeps them complete and true."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.main import get_command

from llenergymeasure.cli.app import app
from llenergymeasure.config.introspection import get_params_from_model
from llenergymeasure.config.models import ExecutionConfig, ExperimentConfig, StudyConfig
from llenergymeasure.config.ssot import BACKENDS
from llenergymeasure.config.user_config import UserConfig
from settings_map import MAPS, Effect

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "llenergymeasure"

PARTS = {"experiment": "field", "study": "key", "user": "setting", "flags": "flag", "variables": "variable"}
"""Parts of the page, and what stands in the first column of each."""

NOT_WRITTEN = {"study_design_hash", "skipped_configs"}
"""Fields of a study that the loader fills in."""

Maps = Mapping[str, Mapping[str, Effect]]


def settings() -> dict[str, set[str]]:
    """Everything a user can set, for each part of the page."""
    own_keys = set(StudyConfig.model_fields) - NOT_WRITTEN - {"execution"} | {"base", "sweep"}
    return {
        "experiment": set(get_params_from_model(ExperimentConfig)),
        "study": own_keys | set(get_params_from_model(ExecutionConfig, "execution")),
        "user": set(get_params_from_model(UserConfig)),
        "flags": set(flags()),
        "variables": variables_in_the_code(),
    }


def problems(maps: Maps = MAPS) -> list[str]:
    """What is wrong with the map: settings it lacks or invents, modules that are missing, what is no test."""
    return [*_incomplete(maps), *_dangling(maps)]


def table(part: str) -> str:
    """One part of the page as a Markdown table."""
    rows = [f"| {PARTS[part]} | acts in | shown by |", "|---|---|---|"]
    for name, effect in MAPS[part].items():
        test = effect.shown_by
        file = Path(sys.modules[test.__module__].__file__ or "").relative_to(ROOT)
        note = f" ({effect.note})" if effect.note else ""
        rows.append(f"| `{name}`{note} | `{effect.acts_in}` | `{file}`<br>`{test.__name__}` |")
    return "\n".join(rows)


def flags() -> Iterator[str]:
    """Every flag and argument by its command and longest name, such as `llem run --model`."""
    group: Any = get_command(app)
    for name, command in group.commands.items():
        yield from (f"llem {name} {_flag(parameter)}" for parameter in command.params)
    yield from (f"llem {_flag(parameter)}" for parameter in group.params)


def variables_in_the_code() -> set[str]:
    """This package's environment variables, from what the user configuration reads and any module names."""
    named = {
        variable
        for path in PACKAGE.rglob("*.py")
        for variable in re.findall(r"[\"'](LLEM_[A-Z_]+)[\"']", path.read_text(encoding="utf-8"))
    }
    return named | {f"LLEM_RUNNER_{backend.upper()}" for backend in BACKENDS}


def _flag(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return str(parameter.name).upper()
    return str(max(parameter.opts, key=len))


def _incomplete(maps: Maps) -> Iterator[str]:
    for part, known in settings().items():
        named = set(maps[part])
        yield from (f"{part}: {name} has no entry in settings_map" for name in sorted(known - named))
        yield from (f"{part}: {name} is in settings_map and cannot be set" for name in sorted(named - known))


def _dangling(maps: Maps) -> Iterator[str]:
    for part, mapping in maps.items():
        for name, effect in mapping.items():
            if not (PACKAGE / effect.acts_in).is_file():
                yield f"{part}: {name} acts in {effect.acts_in}, which does not exist"
            if not effect.shown_by.__name__.startswith("test_"):
                yield f"{part}: {name} is shown by {effect.shown_by.__name__}, which is no test"
