"""Seconds that the device spends on each of several networks."""

import contextlib
from collections.abc import Sequence

from engine.runtime import Runtime
from engine.streams import Stopwatch


class Clock:
    """A clock that adds up the seconds that the device spends on each of several networks.

    The seconds of a replayed CUDA graph, which holds all networks, are divided evenly among them. The host
    waits for the device only when the seconds are read. seconds: those of each network before the run was
    resumed.
    """

    def __init__(self, seconds: Sequence[float], runtime: Runtime):
        self.earlier, self.runtime = list(seconds), runtime
        self.even = runtime.graphs or len(self.earlier) == 1
        self.watches: list[Stopwatch] = []
        self._restart()

    def _restart(self) -> None:
        self.watches = [Stopwatch(self.runtime.device) for _ in range(1 if self.even else len(self.earlier))]

    def step(self) -> contextlib.AbstractContextManager:
        """Time a block that is a step of all networks."""
        return self.watches[0] if self.even else contextlib.nullcontext()

    def network(self, number: int) -> contextlib.AbstractContextManager:
        """Time a block inside of a step that belongs to network `number`."""
        return contextlib.nullcontext() if self.even else self.watches[number]

    @property
    def seconds(self) -> list[float]:
        """Seconds of each network so far."""
        spent = [watch.seconds() for watch in self.watches]
        if self.even:
            spent = [spent[0] / len(self.earlier)] * len(self.earlier)
        self.earlier = [before + more for before, more in zip(self.earlier, spent, strict=True)]
        self._restart()
        return list(self.earlier)
