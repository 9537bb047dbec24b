"""The host's processor, as Linux describes it; elsewhere as far as Python knows."""

from __future__ import annotations

import platform
from pathlib import Path

from llenergymeasure.domain.environment import CPUEnvironment


def read_cpu(root: Path = Path("/")) -> CPUEnvironment:
    """Model and frequency governor of the processor.

    Args:
        root: Where `proc` and `sys` are.
    """
    return CPUEnvironment(
        governor=_governor(root / "sys/devices/system/cpu"),
        model=_model(root / "proc/cpuinfo") or platform.processor() or None,
        platform=f"{platform.system()} {platform.machine()}",
    )


def _model(cpuinfo: Path) -> str | None:
    """The first `model name` (x86) or `Model`/`Hardware` line (some ARM systems)."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    values = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return next((values[key] for key in ("model name", "Model", "Hardware") if values.get(key)), None)


def _governor(cpus: Path) -> str | None:
    """The governor of all cores; several, sorted, where they differ. `None` where the kernel scales nothing."""
    found = set()
    for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor"):
        try:
            found.add(path.read_text(encoding="utf-8").strip())
        except OSError:  # a core that was taken offline meanwhile
            continue
    return ", ".join(sorted(found)) or None
