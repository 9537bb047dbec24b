"""All kill points, all failing file operations and many random kills: `python -m tests.faults [RANDOM_KILLS]`.

From the repository's root, with `PYTHONPATH=tests` and what the tests need; takes about a second per point.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

from tests.faults.harness import KINDS, Harness, random_delays


def main(random_kills: int) -> None:
    with tempfile.TemporaryDirectory(prefix="llem-faults-") as scratch:
        harness = Harness(Path(scratch))
        changes = harness.changes()
        for kind in KINDS:
            for lasting in [False] if kind == "kill" else [False, True]:
                for number in range(1, changes + 1):
                    harness.fail_at(number, kind, lasting=lasting)
                sys.stdout.write(f"{kind}{', lasting' if lasting else ''}: {changes} points\n")
                sys.stdout.flush()
        seed = random.randrange(2**32)
        for delay_s in random_delays(random_kills, seed):
            harness.kill_after(delay_s)
        sys.stdout.write(f"random kills: {random_kills}, seed {seed}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
