"""Saved results to compare, with figures a reader can check in their head."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from llenergymeasure.results.persistence import save_result
from result_samples import NOON, make_rich_result

TIGHT = (0.99, 1.0, 1.01)
"""Three runs that spread by 1 %."""


class Results:
    """Directories of saved results."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._hours = 0

    def save(
        self,
        name: str,
        *,
        spread: Sequence[float] = TIGHT,
        energy: float = 0.4,
        speed: float = 300.0,
        batches: Sequence[int] = (8,),
        **changes: Any,
    ) -> str:
        """One run for each number of `spread` and each batch, an hour apart."""
        for share in spread:
            for batch in batches:
                start = NOON + timedelta(hours=self._hours)
                self._hours += 1
                fields = {
                    "experiment_id": f"run-{self._hours}",
                    "measurement_config_hash": f"{batch:016x}",
                    "config_name": f"m / pytorch / batch {batch}",
                    "effective_config": {"backend": "pytorch", "precision": "bf16", "pytorch": {"batch_size": batch}},
                    "avg_energy_per_token_j": energy * share,
                    "total_energy_j": energy * share * 12_800,
                    "avg_tokens_per_second": speed * share,
                    "start_time": start,
                    "end_time": start + timedelta(minutes=5),
                }
                save_result(make_rich_result(**{**fields, **changes}), self.root / name)
        return str(self.root / name)
