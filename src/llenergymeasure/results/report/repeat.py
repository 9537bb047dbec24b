"""What a reader needs to run it again, and to cite it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import yaml

from llenergymeasure.domain.base import as_utc
from llenergymeasure.results.export import OUTPUT_DIR
from llenergymeasure.results.report.page import Markup, code, paragraph, tag, together

CITATION_TITLE: Final = "llenergymeasure: energy, throughput and latency of LLM inference configurations"
CITATION_AUTHOR: Final = "The llenergymeasure authors"


SWITCHED_OFF: Final = (("energy", "backend"),)
"""Settings whose null is no default: it switches something off."""


def without_unset(config: Any) -> Any:
    """Settings without those that are null, at any depth, and without where results went."""
    if isinstance(config, Mapping):
        return {key: without_unset(value) for key, value in config.items() if value is not None and key != OUTPUT_DIR}
    return [without_unset(entry) for entry in config] if isinstance(config, list) else config


def as_said(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as a file says it: without what is null, unless that says something."""
    said = dict(without_unset(config))
    for section, name in SWITCHED_OFF:
        given = config.get(section)
        if isinstance(given, Mapping) and name in given and given[name] is None:
            said[section] = {**said.get(section, {}), name: None}
    return said


def as_yaml(content: Mapping[str, Any]) -> str:
    """Settings as a file has them."""
    return str(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=100))


def bibtex(version: str, measured_at: datetime) -> str:
    """The entry to cite.

    Args:
        version: Of the release that measured.
    """
    return "\n".join(
        [
            f"@software{{llenergymeasure_{version.replace('.', '_')},",
            f"  title   = {{{CITATION_TITLE}}},",
            f"  author  = {{{{{CITATION_AUTHOR}}}}},",
            f"  version = {{{version}}},",
            f"  note    = {{Figures measured on {as_utc(measured_at):%Y-%m-%d}}}",
            "}",
        ]
    )


def run_again(command: str, content: str, remark: str) -> Markup:
    """The file and the command that repeat a measurement."""
    return together(
        paragraph(remark), code(content, "Configuration as YAML"), paragraph("Run it with ", tag("code", command))
    )


def citation(version: str, measured_at: datetime) -> Markup:
    """How to cite it."""
    return together(
        paragraph("If you publish these figures, please cite the release that measured them."),
        code(bibtex(version, measured_at), "BibTeX entry"),
    )


def study_file(study: Mapping[str, Any], name: str | None) -> dict[str, Any]:
    """A study's file: what all its experiments have in common once, and for each what it has of its own.

    Args:
        study: The resolved study, as its manifest has it.
    """
    experiments = [as_said(config) for config in study.get("experiments", [])]
    common = _common(experiments)
    own = [_beyond(config, common) or {"model": config["model"]} for config in experiments]
    named = {} if name is None else {"name": name}
    execution = without_unset(study.get("execution", {}))
    return {**named, **common, "experiments": own, "execution": execution}


def _common(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The settings that all have alike; of sections, what is alike in them."""
    first, *rest = configs
    common = {}
    for key, value in first.items():
        others = [config.get(key) for config in rest]
        if all(other == value for other in others):
            common[key] = value
        sections = [other for other in (value, *others) if isinstance(other, Mapping)]
        if key not in common and len(sections) == len(configs) and (inner := _common(sections)):
            common[key] = inner
    return common


def _beyond(config: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one that not all have."""
    own: dict[str, Any] = {}
    for key, value in config.items():
        if key not in common:
            own[key] = value
        elif value != common[key]:
            own[key] = _beyond(value, common[key])
    return own
