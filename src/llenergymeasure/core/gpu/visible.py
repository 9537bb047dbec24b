"""Which GPUs a CUDA program started here would see, in its order, told from NVML without starting CUDA.

NVML knows every board of the machine, in order of PCI bus address; CUDA shows a program a choice of them, in an order
of its own. The rules followed here are those of the CUDA programming guide ("CUDA environment variables") and of the
MIG user guide:

- `CUDA_VISIBLE_DEVICES` unset: every board. Empty: none.
- A list of indices or of UUIDs (whole, or a prefix that only one device has). The list ends before the first entry
  that names nothing; an entry that occurs twice empties it.
- Indices count in `CUDA_DEVICE_ORDER`: `PCI_BUS_ID` is NVML's order; the default, `FASTEST_FIRST`, is a ranking that
  only CUDA knows. It leaves like boards in PCI order, so it matters on machines with unlike boards only: see
  `order_is_certain`, and pass `cuda_uuids` once CUDA runs in the process.
- One MIG instance is all that a program sees: the first that was named, or the first of the first board in MIG mode;
  and beside it no whole board.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from llenergymeasure.core.gpu.driver import Gpu, GpuDriver, all_boards

VISIBLE_DEVICES: Final = "CUDA_VISIBLE_DEVICES"
DEVICE_ORDER: Final = "CUDA_DEVICE_ORDER"


def visible_gpus(
    environ: Mapping[str, str], driver: GpuDriver, cuda_uuids: Sequence[str] | None = None
) -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows to a program with this environment, in CUDA's order.

    Args:
        cuda_uuids: As the CUDA runtime reports them, in its order, where it is already running in this process
            (`cuda_uuids_of_torch`); they are the truth and override the environment.

    Raises:
        GpuDriverError: NVML could not list the boards.
    """
    boards = all_boards(driver)
    if cuda_uuids is not None:
        names = {gpu.uuid: gpu for board in boards for gpu in (board, *board.instances)}
        chosen = [_by_prefix(uuid, names) for uuid in cuda_uuids]
    else:
        chosen = list(_select(environ.get(VISIBLE_DEVICES), boards))
    return tuple(replace(gpu, cuda_index=index) for index, gpu in enumerate(gpu for gpu in chosen if gpu is not None))


def order_is_certain(environ: Mapping[str, str], driver: GpuDriver) -> bool:
    """Whether NVML alone can tell which board CUDA calls 0, 1, …: not of unlike boards under `FASTEST_FIRST`."""
    if environ.get(DEVICE_ORDER) == "PCI_BUS_ID":
        return True
    return len({board.name for board in all_boards(driver)}) <= 1


def cuda_is_up() -> bool:
    """Whether this process holds a CUDA context: PyTorch, which all engines here use, has opened one."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_initialized())


def cuda_uuids_of_torch(torch: Any) -> tuple[str, ...]:
    """UUIDs of the GPUs that the module `torch` sees, in CUDA's order, as NVML writes them; CUDA is initialised."""
    return tuple(uuid_of_torch(torch, index) for index in range(torch.cuda.device_count()))


def uuid_of_torch(torch: Any, device: Any) -> str:
    """UUID of one GPU of the module `torch`, as NVML writes it."""
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _select(visible: str | None, boards: Sequence[Gpu]) -> Sequence[Gpu]:
    """The devices that a value of `CUDA_VISIBLE_DEVICES` leaves, in its order."""
    if visible is None:
        return _one_mig_instance_or_boards([_as_cuda_sees(board) for board in boards])
    entries = [entry.strip() for entry in visible.split(",")]
    are_names = entries[0].startswith(("GPU-", "MIG-"))
    names = {instance.uuid: instance for board in boards for instance in board.instances}
    names |= {board.uuid: _as_cuda_sees(board) for board in boards}
    found: list[Gpu] = []
    for entry in entries:
        device = _by_prefix(entry, names) if are_names else _by_index(entry, boards)
        if device is None:
            break
        found.append(device)
    if len({device.uuid for device in found}) < len(found):
        return ()
    return _one_mig_instance_or_boards(found)


def _as_cuda_sees(board: Gpu) -> Gpu:
    """A board in MIG mode is its first instance to CUDA."""
    return board.instances[0] if board.instances else board


def _one_mig_instance_or_boards(devices: Sequence[Gpu]) -> Sequence[Gpu]:
    instances = [device for device in devices if device.is_mig]
    return instances[:1] or devices


def _by_index(entry: str, boards: Sequence[Gpu]) -> Gpu | None:
    """CUDA reads an entry like C's `strtol`: digits at its beginning count, the rest is ignored."""
    digits = re.match(r"[+-]?\d+", entry)
    if digits is None:
        return None
    index = int(digits.group())
    return _as_cuda_sees(boards[index]) if 0 <= index < len(boards) else None


def _by_prefix(entry: str, names: Mapping[str, Gpu]) -> Gpu | None:
    """The device with the UUID `entry`, or the only one whose UUID begins with it."""
    if entry in names:
        return names[entry]
    matches = [device for name, device in names.items() if entry and name.startswith(entry)]
    return matches[0] if len(matches) == 1 else None
