"""What the tests of a Ray cluster share: its nodes, a study's files, and the marks that its engine leaves."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

WAIT_S = 120.0


@dataclass
class Mark:
    """What the engine left when it generated."""

    node: str
    seed: int
    pid: int


@dataclass
class LocalCluster:
    """Nodes that are processes of this machine."""

    directory: Path
    environment: dict[str, str]
    ray: Any = None
    nodes: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return self.ray.address

    def add(self, name: str, **variables: str) -> None:
        """Start a node with a processor and a GPU in Ray's books, and environment variables of its own."""
        own = self.directory / name
        own.mkdir(exist_ok=True)
        variables = {"TEST_CLUSTER_NODE": name, "TMPDIR": str(own), **variables}
        self.nodes[name] = self.ray.add_node(num_cpus=1, num_gpus=1, node_name=name, env_vars=variables)

    def kill(self, name: str) -> None:
        """As a machine that loses its power: SIGKILL, no farewell."""
        self.ray.remove_node(self.nodes.pop(name), allow_graceful=False)

    def left_on_nodes(self) -> set[Path]:
        """What is there of runs."""
        return {*self.directory.glob("*/llem-*")}

    def llem(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "llenergymeasure", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=cwd, env=self.environment, **pipes)  # type: ignore[call-overload]


@dataclass
class StudyFiles:
    """A study's file, where its engine leaves marks, and the file it waits for."""

    directory: Path

    def __post_init__(self) -> None:
        self.marks_dir = self.directory / "marks"
        self.marks_dir.mkdir()
        self.hold = self.directory / "hold"

    def write(
        self, seeds: list[int], *, holds: tuple[int, ...] = (), cycles: int = 1, gap_s: float = 0, **fields: Any
    ) -> Path:
        path = self.directory / "study.yaml"
        fixed = {
            "model": "m",
            "backend": "stand_in",
            "n": 2,
            "max_output_tokens": 4,
            "baseline": {"enabled": False},
            "warmup": {"n_warmup": 1, "thermal_floor_seconds": 0},
            "energy": {"backend": None},
            "output_dir": str(self.directory / "results"),
        }
        held = {"marks": str(self.marks_dir), "hold": str(self.hold)}
        experiments = [
            {"random_seed": seed, "passthrough_kwargs": held if seed in holds else {"marks": str(self.marks_dir)}}
            for seed in seeds
        ]
        execution = {"n_cycles": cycles, "config_gap_seconds": gap_s, "cycle_gap_seconds": 0}
        path.write_text(yaml.safe_dump({**fixed, "experiments": experiments, **fields, "execution": execution}))
        return path

    def marks(self) -> list[Mark]:
        rows = [path.name.split(" ") for path in self.marks_dir.iterdir()]
        return [Mark(node, int(seed), int(pid)) for node, seed, pid, _ in rows]

    def threads(self) -> set[str]:
        """What the engine found in OMP_NUM_THREADS."""
        return {path.read_text() for path in self.marks_dir.iterdir()}

    @property
    def study_dir(self) -> Path:
        (found,) = (self.directory / "results").iterdir()
        return found


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.1)
