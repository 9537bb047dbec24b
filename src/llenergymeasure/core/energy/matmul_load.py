"""A load for calibrations: matrix products that can be switched on and off."""

from __future__ import annotations

import contextlib
import threading

from llenergymeasure.core.host.threads import started
from llenergymeasure.exceptions import EnergyError


class MatmulLoad:
    """Matrix products on a CUDA device in a thread of its own; an `EnergyError` where PyTorch sees no such device."""

    def __init__(self, cuda_index: int) -> None:
        try:
            import torch
        except ImportError as error:
            raise EnergyError(
                'the load needs PyTorch. Install it with: pip install "llenergymeasure[pytorch]"'
            ) from error
        if cuda_index >= torch.cuda.device_count():
            raise EnergyError(f"PyTorch {torch.__version__} sees no CUDA device {cuda_index}")
        self._torch = torch
        self._matrix = torch.randn(4096, 4096, device=f"cuda:{cuda_index}", dtype=torch.float16)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Draw power from now on; returns once the first product is done, or raises what the device refused with."""
        try:
            self._multiply()
        except RuntimeError as error:
            raise EnergyError(f"the load does not run: {error}") from error
        self._stop.clear()
        self._thread = started(threading.Thread(target=self._work, name="llem-calibration-load", daemon=True))

    def stop(self) -> None:
        """Stop, and wait for the last product."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        with contextlib.suppress(RuntimeError):  # out of memory, a lost device: the next `start` meets it too
            while not self._stop.is_set():
                self._multiply()

    def _multiply(self) -> None:
        self._torch.matmul(self._matrix, self._matrix)
        self._torch.cuda.synchronize(self._matrix.device)  # so that no queue outlives `stop`
