"""Which CUDA release this machine's software runs on, found without starting CUDA or importing torch.

Asked in this order, since the first is what the measured program really uses: the CUDA that the installed torch was
built with, the toolkit's version file, the toolkit's compiler.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

CudaVersionSource = Literal["torch", "version_file", "nvcc"]

TOOLKIT_DIR: Final = Path("/usr/local/cuda")
"""Where NVIDIA's installer puts the toolkit."""

NVCC_TIMEOUT_S: Final = 10.0

_RELEASE: Final = r"(\d+\.\d+(?:\.\d+)?)"


@dataclass(frozen=True, slots=True)
class CudaVersion:
    """A CUDA release and who told it."""

    version: str
    source: CudaVersionSource


def find_cuda_version(environ: Mapping[str, str], torch_dir: Path | None = None) -> CudaVersion | None:
    """The CUDA release, from the first source that knows one.

    Args:
        environ: Environment in which the toolkit is looked for (`CUDA_HOME`, `CUDA_PATH`, `PATH`).
        torch_dir: Directory of the torch package; `None`: there is none.

    Returns:
        `None` where torch is missing or a CPU build and no toolkit is installed.
    """
    toolkit = Path(environ.get("CUDA_HOME") or environ.get("CUDA_PATH") or TOOLKIT_DIR)
    if torch_dir is not None and (version := _of_torch(torch_dir)):
        return CudaVersion(version, "torch")
    if version := _of_version_file(toolkit):
        return CudaVersion(version, "version_file")
    if version := _of_nvcc(toolkit, environ):
        return CudaVersion(version, "nvcc")
    return None


def _of_torch(torch_dir: Path) -> str | None:
    """`torch.version.cuda`, read from the file that defines it; a CPU build says `None` there."""
    try:
        text = (torch_dir / "version.py").read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(rf"^cuda\b[^=\n]*=\s*['\"]{_RELEASE}", text, re.MULTILINE)
    return match[1] if match else None


def _of_version_file(toolkit: Path) -> str | None:
    """`version.json` (toolkits since 11.1), else `version.txt` (older ones)."""
    return _of_version_json(toolkit / "version.json") or _of_version_txt(toolkit / "version.txt")


def _of_version_json(path: Path) -> str | None:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["cuda"]["version"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_version_txt(path: Path) -> str | None:
    try:
        match = re.search(rf"CUDA Version {_RELEASE}", path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return match[1] if match else None


def _of_nvcc(toolkit: Path, environ: Mapping[str, str]) -> str | None:
    for nvcc in ("nvcc", str(toolkit / "bin" / "nvcc")):
        try:
            answer = subprocess.run(
                [nvcc, "--version"], env=dict(environ), capture_output=True, text=True, timeout=NVCC_TIMEOUT_S
            )
        except (OSError, ValueError, subprocess.TimeoutExpired):
            continue
        match = re.search(rf"release {_RELEASE}", answer.stdout)
        if match:
            return match[1]
    return None
