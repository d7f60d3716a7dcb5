"""CUDA graphs: recording computes nothing that lasts, a replay runs the operations on the same memory."""

import weakref
from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from . import streams
from .generators import CpuGenerator, CudaGenerator
from .nested import leaves
from .report import REPORT

_recording: list["CUDAGraph"] = []
_pools: defaultdict[object, list[weakref.ref]] = defaultdict(list)


def recording() -> "CUDAGraph | None":
    """The graph that is being recorded."""
    return _recording[0] if _recording else None


CudaGenerator.capturing = staticmethod(lambda: bool(_recording))


def _bytes_of(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(storage)


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class CUDAGraph:
    """torch.cuda.CUDAGraph."""

    def __init__(self, keep_graph: bool = False):
        self.operations: list[
            tuple
        ] = []  # (work, its new tensors (place, tensor), what it reads, what it writes)
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # storage -> its bytes, and what they were
        self.generators: dict[int, tuple[CudaGenerator, Tensor]] = {}
        self.own: dict[int, torch.UntypedStorage] = {}  # memory that was allocated during the recording
        self.pool_id: object = None
        self.ended = False

    def register_generator_state(self, generator: CudaGenerator) -> None:
        if not isinstance(generator, CudaGenerator):
            REPORT.fault("register_generator_state: a CPU generator")
        generator.registered.add(self)

    def capture_begin(self, pool=None, capture_error_mode="global", check_input_liveness=False) -> None:
        if streams.CLOCKS.current == streams.DEFAULT:
            REPORT.fault("CUDA graphs must be captured on a non-default stream")
        if _recording:
            REPORT.fault("a graph is recorded while another one is")
        self.pool_id = pool
        _pools[pool].append(weakref.ref(self))
        _spoil(pool)
        _recording.append(self)

    def keep(self, tensor: Tensor) -> None:
        """Note what a tensor holds that is about to be written."""
        if _address(tensor) not in self.before and _address(tensor) not in self.own:
            held = _bytes_of(tensor.untyped_storage())
            self.before[_address(tensor)] = held, held.clone()

    def keep_generator(self, generator: CudaGenerator) -> None:
        """Note the state of one that is about to be drawn from."""
        self.generators.setdefault(id(generator), (generator, generator.get_state()))

    def record(self, work: Callable, inputs: list, written: list[Tensor], results: list) -> None:
        """Take in an operation that was run."""
        given = [value for value in inputs if isinstance(value, Tensor)]
        storages = {_address(tensor) for tensor in given}
        fresh = [
            (i, value)
            for i, value in enumerate(results)
            if isinstance(value, Tensor) and _address(value) not in storages
        ]
        self.own |= {_address(value): value.untyped_storage() for _, value in fresh}
        if fresh or written:
            self.operations.append((work, fresh, given, written))

    def capture_end(self) -> None:
        _recording.clear()
        self.ended = True
        REPORT.note("recordings", "a graph")
        for held, values in self.before.values():
            held.copy_(values)
        for generator, state in self.generators.values():
            CpuGenerator.set_state(generator, state)
        self.before = {}
        self.spoil()

    def spoil(self) -> None:
        """Fill the memory with NaN, or -1 in whole numbers, as another graph of the same pool may."""
        for storage in self.own.values():
            _bytes_of(storage).fill_(0xFF)

    def replay(self) -> None:
        if not self.ended:
            REPORT.fault("a graph is replayed before its recording ended")
        _spoil(self.pool_id)
        with torch.no_grad(), _disable_current_modes():
            for work, fresh, _, _ in self.operations:
                outputs = leaves(work())
                for i, tensor in fresh:
                    tensor.copy_(outputs[i])
        reads = [tensor for _, _, given, _ in self.operations for tensor in given]
        streams.touch(reads, [tensor for _, _, _, written in self.operations for tensor in written])

    def pool(self) -> object:
        return self.pool_id

    def reset(self) -> None:
        self.operations, self.own = [], {}


def _spoil(pool: object) -> None:
    for reference in _pools[pool]:
        graph = reference()
        if graph is not None and graph.ended:
            graph.spoil()


class graph:
    """A block that is recorded, in the order of torch's own calls."""

    def __init__(self, cuda_graph: CUDAGraph, pool=None, stream=None, capture_error_mode="global", **_):
        self.graph, self.pool, self.mode = cuda_graph, pool, capture_error_mode
        self.block = streams.stream(stream or streams.Stream())

    def __enter__(self) -> None:
        streams.synchronize()
        self.block.__enter__()
        self.graph.capture_begin(self.pool, capture_error_mode=self.mode)

    def __exit__(self, *error) -> None:
        if error[0] is None:
            self.graph.capture_end()
        else:
            _recording.clear()
        self.block.__exit__(*error)
