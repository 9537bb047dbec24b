"""A process's share of an experiment that several processes run together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from llenergymeasure.datasets.types import PromptSet


@dataclass(frozen=True, slots=True)
class Share:
    """Which of the processes this one is.

    Args:
        index: From 0.
        count: Processes in all.
    """

    index: int = 0
    count: int = 1

    def of(self, prompts: PromptSet) -> PromptSet:
        """Every `count`-th prompt from the `index`-th on: the shares are disjoint and together are all prompts.

        Dealt out in turns, because neighbours in a data set are often alike in length.
        """
        own = prompts.prompts[self.index :: self.count]
        return replace(prompts, prompts=own, truncated_count=sum(prompt.truncated for prompt in own))


WHOLE: Final = Share()
"""The share of an experiment that runs in one process."""
