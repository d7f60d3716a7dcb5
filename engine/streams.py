"""CUDA streams that may overlap, and the device's clock."""

import contextlib
import functools
import time
from typing import Any

import torch


@functools.lru_cache
def _side_streams(n: int, device: torch.device) -> list[torch.cuda.Stream]:
    """n CUDA streams, the same at each call: memory that is freed on a stream is kept for that stream."""
    return [torch.cuda.Stream(device) for _ in range(n)]


class Lanes:
    """n CUDA streams whose work may overlap; without CUDA, plain blocks.

    Enter each as often as needed by `with lanes[i]: ...`, and call lanes.join() at the end.
    """

    def __init__(self, n: int, device: torch.device):
        self.streams = _side_streams(n, device) if n > 1 and device.type == "cuda" else []
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream())

    def __getitem__(self, i: int) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(self.streams[i]) if self.streams else contextlib.nullcontext()

    @property
    def overlap(self) -> int:
        """Number of lanes that may run at the same time."""
        return max(1, len(self.streams))

    def join(self) -> None:
        """Make the current stream wait for all lanes."""
        for stream in self.streams:
            torch.cuda.current_stream().wait_stream(stream)


class Stopwatch:
    """Seconds that the device spent in `with watch:` blocks, summed.

    The host waits for the device only when it reads them.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.laps: list[tuple] = []

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def __enter__(self) -> None:
        self.laps.append((self._now(),))

    def __exit__(self, *error) -> None:
        self.laps[-1] += (self._now(),)

    def seconds(self) -> float:
        """Seconds of all blocks so far; waits for the end of the last one."""
        if not self.cuda:
            return sum(end - start for start, end in self.laps)
        torch.cuda.current_stream().synchronize()
        return sum(start.elapsed_time(end) for start, end in self.laps) / 1000
