"""A cluster that Ray runs: who is there, and a launcher for each node. Ray is imported when one is asked for.

Where an experiment runs, how its bytes get there, who is alive and what is free is Ray's business. An agent takes all
processors and GPUs of its node, so that Ray gives nobody else's work a place beside a measurement.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any, Final

from llenergymeasure.constants import VERSION
from llenergymeasure.exceptions import PreFlightError, StudyError
from llenergymeasure.results.summary import one_line
from llenergymeasure.runners.cluster import Node
from llenergymeasure.runners.ray_group import RayGroup
from llenergymeasure.runners.ray_launcher import Member, RayNodeLauncher, cause_of, remotely
from llenergymeasure.runners.ray_node import introduce

INTRODUCTION_S: Final = 60.0
"""How long the first look at a cluster waits for its nodes to introduce themselves, in seconds."""

ANY_CLUSTER: Final = "auto"
"""Stands for the cluster that this machine belongs to."""

KNOCK_S: Final = 10.0
"""How long a cluster's first machine may take to answer at all, in seconds."""

AMD_LIBRARY: Final = "libamd_smi"
"""Ray 2.60 looks for AMD GPUs and bears no `amdsmi` (Zeus brings it along) whose library is missing."""

WITHOUT_AMD: Final = "On a machine without AMD GPUs: pip uninstall amdsmi"

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_cluster(address: str) -> Iterator[RayCluster]:
    """Be connected to a Ray cluster for the length of a `with` block; a connection that is there already is used.

    Args:
        address: As Ray takes it: `auto`, `host:port`, `ray://host:port`.

    Raises:
        PreFlightError: That is no address, Ray is missing, or there is no such cluster.
    """
    _check(address)
    ray = _import_ray(address)
    is_own = not ray.is_initialized()
    if not is_own:
        _check_connection(ray, address)
    # Ray prints what it hears of nodes to stdout, which is for results.
    with contextlib.redirect_stdout(sys.stderr):
        if is_own:
            _connect(ray, address)
        try:
            yield RayCluster(ray, address)
        finally:
            if is_own:
                ray.shutdown()


def _check(address: str) -> None:
    """Refuse what Ray would not look for a cluster at: for `local` it starts one, for nothing it takes any."""
    host, _, port = address.partition("://")[2].rpartition(":") if "://" in address else address.rpartition(":")
    if address != ANY_CLUSTER and not (host.strip() and port.isdecimal()):
        raise PreFlightError(
            [
                f"--cluster {address or repr(address)}: is no address. "
                f"Give HOST:6379, ray://HOST:10001, {ANY_CLUSTER}, or none to stay on this machine"
            ]
        )


def _check_connection(ray: ModuleType, address: str) -> None:
    """Refuse a cluster other than the one that this process is connected to; whose address a client is not told."""
    host, _, port = address.rpartition(":")
    if address == ANY_CLUSTER or "://" in address:
        return
    connected_to = ray.get_runtime_context().gcs_address
    there, _, its_port = connected_to.rpartition(":")
    numeric = _numeric(host)
    is_here = numeric is not None and ipaddress.ip_address(numeric).is_loopback  # Debian has 127.0.1.1 for its own name
    if port != its_port or not (is_here or there in (host, numeric)):
        raise PreFlightError(
            [
                f"--cluster {address}: this process is connected to the Ray cluster at {connected_to} already. "
                "Name that one, or call ray.shutdown() before"
            ]
        )


def _numeric(host: str) -> str | None:
    """The address that a host's name stands for; `None`: there is no such host."""
    try:
        return socket.gethostbyname(host.strip("[]"))
    except (OSError, UnicodeError):
        return None


def _import_ray(address: str) -> ModuleType:
    try:
        import ray
        import ray.exceptions
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise PreFlightError(
            [f'--cluster {address}: needs Ray ({error}). Install it: pip install "llenergymeasure[ray]"']
        ) from error
    except Exception as error:  # one of the packages that it looks for is broken: anything can come of that
        cause = f"{type(error).__name__}: {error}"
        fix = WITHOUT_AMD if AMD_LIBRARY in cause else "Python shows where with: python -c 'import ray'"
        raise PreFlightError(
            [f"--cluster {address}: Ray is installed and cannot be imported: {cause}. {fix}"]
        ) from error
    return ray  # type: ignore[no-any-return]


def _connect(ray: ModuleType, address: str) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray's own, gRPC's, and the system's
        raise PreFlightError(
            [
                f"--cluster {address}: cannot connect: {one_line(str(error))}. Is it running? On its first machine: "
                "ray start --head; on the others: ray start --address=HOST:6379"
            ]
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL if before is None else before)  # Ray puts its own there


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens at an address with a port: Ray would go on trying for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), KNOCK_S).close()


class RayCluster:
    """See `runners.cluster.Cluster`."""

    def __init__(self, ray: ModuleType, address: str) -> None:
        self._ray = ray
        self.address = address
        self._asked: dict[str, Any] = {}
        self._known: dict[str, Node] = {}
        self._resources: dict[str, tuple[float, float]] = {}
        self._refused: list[str] = []
        self._has_looked = False

    def nodes(self) -> list[Node]:
        """Those that are there and have introduced themselves; the first look waits for them.

        Raises:
            StudyError: The cluster does not answer.
        """
        try:
            listed = self._ray.nodes()
        except Exception as error:  # Ray's own, gRPC's, and the system's
            raise StudyError(
                f"the cluster at {self.address} does not answer any more: {one_line(str(error))}"
            ) from error
        entries = {entry["NodeID"]: entry for entry in listed if entry["Alive"] and _offers_work(entry)}
        names = _names(entries)
        for key in entries.keys() - self._asked.keys():
            self._asked[key] = remotely(self._ray, introduce, key)
        waiting = {self._asked[key]: key for key in entries if key not in self._known and self._asked[key] is not None}
        if waiting:
            patience_s = 0 if self._has_looked else INTRODUCTION_S
            answered, _ = self._ray.wait(list(waiting), num_returns=len(waiting), timeout=patience_s)
            for answer in answered:
                key = waiting[answer]
                self._asked[key] = None
                self._hear(entries[key], names[key], answer)
        self._has_looked = True
        return sorted((self._known[key] for key in entries if key in self._known), key=lambda node: node.name)

    def refused(self) -> list[str]:
        """Why others cannot take experiments; each is told once."""
        told, self._refused = self._refused, []
        return told

    def launcher_on(self, node: Node) -> RayNodeLauncher:
        """What runs jobs on a node."""
        return RayNodeLauncher(self._ray, Member(node, *self._resources[node.id]))

    def together(self, gpus: int, allowed: Sequence[str] | None) -> RayGroup:
        """Its nodes of one kind as one place, see `Cluster.together`."""
        return RayGroup(self._ray, self, lambda node: Member(node, *self._resources[node.id]), gpus, allowed)

    def _hear(self, entry: dict[str, Any], name: str, answer: Any) -> None:
        """Take a node's introduction, or the reason why it cannot take experiments."""
        try:
            said = self._ray.get(answer)
        except self._ray.exceptions.RayTaskError as error:
            self._refused.append(
                f"{name} takes no experiments: llenergymeasure {VERSION} does not answer there ({cause_of(error)}). "
                f'Install it on every node: pip install "llenergymeasure[ray]=={VERSION}"'
            )
            return
        except self._ray.exceptions.RayError:  # it went away; if it is there after all it is asked again
            del self._asked[entry["NodeID"]]
            return
        if said["version"] != VERSION:
            self._refused.append(
                f"{name} takes no experiments: it has llenergymeasure {said['version']}, and this is {VERSION}. "
                f'Install the same release on every node: pip install "llenergymeasure[ray]=={VERSION}"'
            )
            return
        offered = entry["Resources"]
        gpus = int(offered.get("GPU", 0))
        self._resources[entry["NodeID"]] = offered["CPU"], offered.get("GPU", 0)
        self._known[entry["NodeID"]] = Node(
            id=entry["NodeID"], name=name, gpus=gpus, gpu_names=tuple(said["gpu_names"][:gpus]), cpu=said["cpu"]
        )


def _offers_work(entry: dict[str, Any]) -> bool:
    """Whether a node has a processor to give; a head that was started with none is there to direct only."""
    return bool(entry["Resources"].get("CPU", 0) >= 1)


def _names(entries: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What people call the nodes, by id: the name that Ray was given, else the host's; alike ones are told apart."""
    names = {
        key: entry["NodeManagerHostname"]
        if entry.get("NodeName", entry["NodeManagerAddress"]) == entry["NodeManagerAddress"]
        else entry["NodeName"]
        for key, entry in entries.items()
    }
    counts = Counter(names.values())
    return {key: name if counts[name] == 1 else f"{name}-{key[:8]}" for key, name in names.items()}
