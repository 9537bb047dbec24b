"""What Ray does to its workers on a node, undone: they see the machine as it is, from the study's directory."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

import psutil

_THREADS_VARIABLE: Final = "OMP_NUM_THREADS"
_GPUS_VARIABLE: Final = "CUDA_VISIBLE_DEVICES"
_PACKAGES_OF_RAY: Final = "thirdparty_files"


def where_the_study_begins() -> str:
    """The directory that configs are meant from, for a node; empty: somebody has removed it."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def begin_where_the_study_did(cwd: str) -> None:
    """Take a study's directory, where this machine has it too, and what Ray has not changed: configs are meant so."""
    if os.path.isdir(cwd):
        os.chdir(cwd)
    forget_what_ray_set()


def forget_what_ray_set() -> None:
    """Let jobs find the node as a process started there by hand would.

    Ray limits threads and brings packages, and older releases hide the GPUs from whoever takes none in Ray's books.
    """
    sys.path[:] = [entry for entry in sys.path if os.path.basename(entry) != _PACKAGES_OF_RAY]
    of_node = _environment_of_node()
    if _THREADS_VARIABLE not in of_node:
        os.environ.pop(_THREADS_VARIABLE, None)
    if os.environ.get(_GPUS_VARIABLE) == "":
        del os.environ[_GPUS_VARIABLE]
        os.environ.update({_GPUS_VARIABLE: of_node[_GPUS_VARIABLE]} if _GPUS_VARIABLE in of_node else {})


def _environment_of_node() -> Mapping[str, str]:
    """The environment that Ray was started with here: that of this worker's parent."""
    try:
        environment: dict[str, str] = psutil.Process(os.getppid()).environ()
    except psutil.Error:
        return os.environ
    return environment
