"""Constraints for pip: what is installed stays as it is, what is new comes as a requirements file has it."""

import re
import sys
from importlib import metadata
from pathlib import Path


def held(requirements: str, installed: dict[str, str]) -> list[str]:
    """Every installed distribution at its version, then the lines of others from the text of a requirements file."""
    lines = [f"{name}=={version}" for name, version in sorted(installed.items())]
    pinned = [line for line in requirements.splitlines() if "==" in line and not line.startswith("#")]
    return [*lines, *(line for line in pinned if _normal(line.partition("==")[0]) not in installed)]


def _normal(name: str) -> str:
    """A distribution's name as PEP 503 normalises it."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    here = {_normal(each.metadata["Name"]): each.version for each in metadata.distributions() if each.metadata["Name"]}
    sys.stdout.write("\n".join(held(Path(sys.argv[1]).read_text(encoding="utf-8"), here)) + "\n")
