"""Check that a tag may be released: every file that names the version names the same one.

python scripts/check_release.py v2.0.0
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

NAMED_IN = {
    "src/llenergymeasure/constants.py": r'^VERSION: Final = "(?P<version>[^"]+)"$',
    "CITATION.cff": r"^version: (?P<version>\S+)$",
    "CHANGELOG.md": r"^## \[(?P<version>[^\]]+)\] - \d{4}-\d{2}-\d{2}$",
}
"""Where the version stands; in the changelog it is the first one with a date."""


def main(tag: str, root: Path = ROOT) -> int:
    found = list(problems(tag, root))
    for problem in found:
        print(problem)
    return int(bool(found))


def problems(tag: str, root: Path) -> Iterator[str]:
    for name, pattern in NAMED_IN.items():
        match = re.search(pattern, (root / name).read_text(encoding="utf-8"), re.MULTILINE)
        version = match["version"] if match else "no release"
        if tag != f"v{version}":
            yield f"{name} names {version}, the tag is {tag}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
