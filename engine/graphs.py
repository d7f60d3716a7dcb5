"""Steps recorded as CUDA graphs and replayed."""

import weakref
from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from utils import FailedRun

Losses = dict[str, Tensor]
# All of them: their recordings must be freed before the process group is destroyed.
GRAPHED: weakref.WeakSet = weakref.WeakSet()


class Graphed:
    """A step that runs eagerly for its first calls, and is then recorded once and replayed.

    step(*tensors, **settings) -> {name: tensor}. There is one recording for each combination of the tensors'
    shapes and types and of the (hashable) settings. The first WARMUP calls of a combination are ordinary
    steps. They settle what happens only once: allocation of the optimiser's state and choice of kernels.
    Recording computes nothing, so that each call takes exactly one step. Whatever the step reads besides its
    tensors must keep its place in memory. record(work) -> (result of work, replay). replay() repeats the work
    on the same memory.
    """

    WARMUP = 3

    def __init__(
        self,
        step: Callable[..., Losses],
        record: Callable[[Callable[[], Losses]], tuple[Losses, Callable[[], None]]],
    ):
        self.step = step
        self.record = record
        GRAPHED.add(self)
        self.calls: Counter[Hashable] = Counter()
        self.recorded: dict[Hashable, tuple[list[Tensor], Losses, Callable[[], None]]] = {}

    def __call__(self, *inputs: Tensor, **settings: Hashable) -> Losses:
        key = (*((tuple(value.shape), value.dtype) for value in inputs), *sorted(settings.items()))
        if self.calls[key] < self.WARMUP:
            self.calls[key] += 1
            return self.step(*inputs, **settings)
        if key not in self.recorded:
            buffers = [value.clone() for value in inputs]
            self.recorded[key] = (buffers, *self.record(lambda: self.step(*buffers, **settings)))
        buffers, outputs, replay = self.recorded[key]
        for buffer, value in zip(buffers, inputs, strict=True):
            buffer.copy_(value)
        replay()
        return {name: value.clone() for name, value in outputs.items()}  # a recording may reuse their memory


def record_graph(
    work: Callable[[], Losses], memory: tuple, rng: torch.Generator | None
) -> tuple[Losses, Callable[[], None]]:
    """Capture `work` as a CUDA graph on the current stream, which must not be the default one.

    memory: a graph pool. Raises FailedRun if the step cannot be captured. A capture that runs out of memory
    ends with an error of its own, of which OutOfMemoryError is a cause; then that one is raised.
    """
    graph = torch.cuda.CUDAGraph()
    if rng is not None:
        graph.register_generator_state(rng)
    try:
        with torch.cuda.graph(graph, memory, torch.cuda.current_stream(), "thread_local"):
            outputs = {name: value.detach() for name, value in work().items()}
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, torch.OutOfMemoryError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        reason = f"the step could not be captured as a CUDA graph ({str(error).splitlines()[0]})"
        raise FailedRun(f"{reason}; --no-graphs runs it as it is") from error
    return outputs, graph.replay
