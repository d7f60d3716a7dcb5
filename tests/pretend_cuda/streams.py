"""Streams and events, followed by vector clocks; accesses to memory that no wait orders are races.

Every stream counts its operations. What a stream (or the host) has waited for is a clock: stream ->
operations of it that are over.
"""

import weakref
from collections import defaultdict
from collections.abc import Iterable

from torch import Tensor

from .generators import DEVICE
from .report import REPORT, where

Clock = dict[int, int]


class Clocks:
    """The clocks of the streams and of the host, and which stream is current."""

    def __init__(self):
        self.of: defaultdict[int, defaultdict[int, int]] = defaultdict(lambda: defaultdict(int))
        self.host: defaultdict[int, int] = defaultdict(int)
        self.current: Stream | None = None

    def host_waits(self) -> None:
        """The host waits for the current stream."""
        merge(self.host, self.of[self.current.id])


CLOCKS = Clocks()


def merge(clock: Clock, other: Clock) -> None:
    """`clock` has waited for what `other` has."""
    for stream, count in other.items():
        clock[stream] = max(clock[stream], count)


class Stream:
    """torch.cuda.Stream."""

    made = 0

    def __init__(self, device=None, priority=0, **_):
        self.id = self.stream_id = Stream.made
        Stream.made += 1
        self.device, self.device_index, self.device_type = DEVICE, 0, 1

    def wait_stream(self, other: "Stream") -> None:
        merge(CLOCKS.of[self.id], CLOCKS.of[other.id])

    def wait_event(self, event: "Event") -> None:
        merge(CLOCKS.of[self.id], event.clock)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        REPORT.waits("stream.synchronize")
        merge(CLOCKS.host, CLOCKS.of[self.id])

    def query(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __enter__(self) -> None:
        self._block = stream(self)
        self._block.__enter__()

    def __exit__(self, *error) -> None:
        self._block.__exit__(*error)


class Event:
    """torch.cuda.Event. Every lap takes a second."""

    def __init__(self, enable_timing: bool = False, **_):
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or CLOCKS.current
        CLOCKS.of[stream.id][stream.id] += 1
        self.clock = dict(CLOCKS.of[stream.id])

    def wait(self, stream: Stream | None = None) -> None:
        merge(CLOCKS.of[(stream or CLOCKS.current).id], self.clock)

    def synchronize(self) -> None:
        REPORT.waits("event.synchronize")
        merge(CLOCKS.host, self.clock)

    def elapsed_time(self, other: "Event") -> float:
        for event in (self, other):
            if any(CLOCKS.host[stream] < count for stream, count in event.clock.items()):
                REPORT.fault("elapsed_time of an event that the host has not waited for (cudaErrorNotReady)")
        return 1000.0

    def query(self) -> bool:
        return True


class stream:
    """A block on a stream."""

    def __init__(self, wanted: Stream | None):
        self.wanted = wanted

    def __enter__(self) -> None:
        self.before, CLOCKS.current = CLOCKS.current, self.wanted or CLOCKS.current

    def __exit__(self, *error) -> None:
        CLOCKS.current = self.before


DEFAULT = CLOCKS.current = Stream()


def synchronize(device=None) -> None:
    """torch.cuda.synchronize."""
    REPORT.note("host waits", "torch.cuda.synchronize")  # the debug mode leaves it alone
    for clock in list(CLOCKS.of.values()):
        merge(CLOCKS.host, clock)


class Uses:
    """Uses of a storage: stream of its allocation, last write (stream, count), and the reads since."""

    def __init__(self):
        self.stream, self.born = CLOCKS.current.id, where() if Stream.made > 1 else "?"
        self.write: tuple[int, int] | None = None
        self.reads: dict[int, int] = {}


def uses_of(tensor: Tensor) -> Uses:
    """Those of a tensor's storage."""
    storage = tensor.untyped_storage()
    if not hasattr(storage, "_uses"):
        storage._uses = Uses()
        weakref.finalize(storage, _freed, storage._uses)
    return storage._uses


def touch(reads: Iterable[Tensor], writes: Iterable[Tensor]) -> None:
    """An operation of the current stream."""
    mine = CLOCKS.current.id
    now = CLOCKS.of[mine]
    merge(now, CLOCKS.host)  # it is launched after what the host has waited for
    now[mine] += 1
    for tensor in reads:
        uses = uses_of(tensor)
        if uses.write and now[uses.write[0]] < uses.write[1]:
            REPORT.note("races", f"read of what another stream may still be writing; made at {uses.born}")
        uses.reads[mine] = now[mine]
    for tensor in writes:
        uses = uses_of(tensor)
        if uses.write and now[uses.write[0]] < uses.write[1]:
            REPORT.note("races", f"write over an unfinished write of another stream; made at {uses.born}")
        if any(now[stream] < count for stream, count in uses.reads.items()):
            REPORT.note("races", f"write over what another stream may still read; made at {uses.born}")
        uses.write, uses.reads = (mine, now[mine]), {}


def _freed(uses: Uses) -> None:
    """Memory goes back to the stream that it was allocated on, which may use it again at once."""
    last = dict(uses.reads)
    if uses.write:
        last[uses.write[0]] = max(last.get(uses.write[0], 0), uses.write[1])
    for stream, count in last.items():
        if stream != uses.stream and CLOCKS.of[uses.stream][stream] < count and CLOCKS.host[stream] < count:
            REPORT.note(
                "races", "freed for its own stream while another may use it, without record_stream", uses.born
            )
