"""Device, precision, memory layout, compilation, CUDA graphs and rank of a training step."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from engine.compilation import compile_forward, finds_compiler
from engine.environment import describe_device, keep_freed_memory
from engine.graphs import Graphed, Losses, record_graph
from engine.precision import allow_tf32, multiplies_bf16
from engine.ranks import join_job
from engine.seeds import derive_seed
from utils import FailedRun, UsageError, device_name, own_rank, tell


@dataclass(frozen=True)
class Runtime:
    """Device, precision and rank of a training step; whether it is compiled or recorded as a CUDA graph."""

    device: torch.device
    amp: bool = False
    channels_last: bool = False
    graphs: bool = False
    rank: int = 0
    world_size: int = 1
    compile: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    # precision and layout

    def place(self, module: nn.Module) -> nn.Module:
        """Move `module` to the device, with its convolution weights in the chosen memory layout."""
        layout = torch.channels_last if self.channels_last else torch.preserve_format
        return module.to(self.device, memory_format=layout)

    def autocast(self) -> torch.autocast:
        """bf16 for the matrix products of the block; losses, penalties and optimisers belong outside it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    # execution

    def graphed(
        self, step: Callable[..., Losses], rng: torch.Generator | None = None
    ) -> Callable[..., Losses]:
        """`step` itself; with --graphs, a version that is captured as a CUDA graph and replayed.

        rng: a generator that the step draws from besides the device's default one. See Graphed.
        """
        if not self.graphs:
            return step
        memory = torch.cuda.graph_pool_handle()  # one for all recordings: they are replayed in turn
        return Graphed(step, lambda work: record_graph(work, memory, rng))

    def call(self, module: nn.Module, *inputs: Any) -> Any:
        """module(*inputs); with --compile the forward pass is compiled (see compile_forward)."""
        return compile_forward(type(module).forward)(module, *inputs) if self.compile else module(*inputs)

    def compiled(self, method: Callable) -> Callable:
        """A method of modules; with --compile it is compiled (see compile_forward)."""
        return compile_forward(method) if self.compile else method

    def describe(self) -> str:
        """One line of text: device, threads, precision, memory layout and how a step is executed."""
        parts = (
            describe_device(self.device),
            "bf16 autocast" if self.amp else "float32",
            "channels-last" if self.channels_last else "",
            "compiled" if self.compile else "eager",
            "CUDA graphs" if self.graphs else "",
            f"{self.world_size} processes" if self.world_size > 1 else "",
        )
        return ", ".join(filter(None, parts))

    def chosen(self) -> dict[str, Any]:
        """The values in use for the flags that may be left open, for args.json and result rows."""
        return {
            "device": str(self.device),
            "amp": self.amp,
            "channels_last": self.channels_last,
            "compile": self.compile,
        }

    def synchronize(self) -> None:
        """Wait until the device has finished its work, as is needed before reading a clock."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # ranks

    def own_seed(self, *parts: int | str) -> int:
        """derive_seed(*parts) on the first rank; a different seed on each other rank."""
        return derive_seed(*parts) if self.is_main else derive_seed(*parts, "rank", self.rank)

    def check_batch_size(self, batch_size: int, flag: str = "--batch-size") -> None:
        """Raise UsageError unless a batch splits into equal shards of two or more images, for BatchNorm."""
        least = 2 * self.world_size
        if batch_size % self.world_size or batch_size < least:
            expected = f"a multiple of the {self.world_size} processes, at least {least}"
            raise UsageError(f"{flag} {batch_size}: expected {expected}")

    def shard(self, index: Tensor) -> Tensor:
        """This rank's part of the indices (..., B) of a global batch."""
        return index if self.world_size == 1 else index.chunk(self.world_size, dim=-1)[self.rank]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Step `optimizer` on the gradients averaged over the ranks."""
        if self.world_size > 1:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            grads = [p.grad for p in parameters if p.grad is not None]
            flat = self.mean(torch.cat([grad.flatten() for grad in grads]))
            for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(mean.view_as(grad))
        optimizer.step()

    def mean(self, values: Tensor) -> Tensor:
        """`values` averaged over the ranks."""
        return self._reduced(values, dist.ReduceOp.SUM) / self.world_size

    def minimum(self, values: Tensor) -> Tensor:
        """The smallest of `values` over the ranks, element by element."""
        return self._reduced(values, dist.ReduceOp.MIN)

    def any_rank(self, number: int | None) -> int | None:
        """The largest `number` of all ranks that have one; None if none has."""
        return max((n for n in self.gather(number) if n is not None), default=None)

    def gather(self, value: Any) -> list:
        """The values of all ranks in their order, on every rank. value: anything that can be pickled."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        self._collective(dist.all_gather_object, values, value)
        return values

    def spread(self, work: Callable[[Any], Any], jobs: Sequence) -> list:
        """[work(job) for job in jobs] on every rank; the jobs are divided among the ranks."""
        mine = {i: work(jobs[i]) for i in range(self.rank, len(jobs), self.world_size)}
        results = {i: result for part in self.gather(mine) for i, result in part.items()}
        return [results[i] for i in range(len(jobs))]

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the first rank's buffers, such as BatchNorm statistics of its batches, to every rank."""
        if self.world_size > 1:
            for buffer in module.buffers():
                self._collective(dist.broadcast, buffer, 0)

    def barrier(self) -> None:
        """Wait for the other ranks."""
        self.gather(None)

    def _reduced(self, values: Tensor, operation: dist.ReduceOp) -> Tensor:
        values = values.clone()
        if self.world_size > 1:
            self._collective(dist.all_reduce, values, operation)
        return values

    def on_main(self, work: Callable[[], object]) -> None:
        """Do `work` on the first rank; a UsageError there is raised on every rank, so that none waits."""
        refusal = None
        if self.is_main:
            try:
                work()
            except UsageError as error:
                refusal = str(error)
        refusal, *_ = self.gather(refusal)
        if refusal is not None:
            raise UsageError(refusal)

    def _collective(self, call: Callable, *args) -> None:
        try:
            call(*args)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = f"another process of this job is gone ({str(error).splitlines()[0]})"
            raise FailedRun(f"{reason}; the same command continues from the last checkpoint") from None


def find_device(device: str, world_size: int = 1) -> torch.device:
    """The device named by --device auto|cpu|cuda[:N], made the current CUDA device.

    Each of several processes gets its own. Raises UsageError if the device does not exist.
    """
    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device(name)
    if not torch.cuda.is_available():
        reason = f"no CUDA device is available to torch {torch.__version__}"
        raise UsageError(f"--device {device}: {reason}, expected cpu or auto")
    devices = torch.cuda.device_count()
    if world_size > 1:
        if ":" in name:
            reason = f"names one device for {world_size} processes, expected cuda, a device each"
            raise UsageError(f"--device {device}: {reason}")
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if processes > devices:
            reason = f"found {devices} CUDA devices for {processes} processes, expected one each"
            raise UsageError(f"--device {device}: {reason}")
        index = int(os.environ.get("LOCAL_RANK", 0))
    else:
        index = int(name.partition(":")[2] or torch.cuda.current_device())
    if index >= devices:
        raise UsageError(f"--device {device}: found {devices} CUDA devices, numbered from 0")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def add_execution_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say how steps are executed, the same in every script (see make_runtime)."""
    switch = {"action": argparse.BooleanOptionalAction}
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp", **switch, help="bf16 autocast (default: where the device has bf16 instructions)"
    )
    parser.add_argument("--channels-last", **switch, help="channels-last memory layout (default: on CUDA)")
    parser.add_argument("--graphs", **switch, default=False, help="replay each step as one CUDA graph")
    parser.add_argument(
        "--compile", **switch, default=False, help="fuse classifiers and pool networks by torch.compile"
    )


def make_runtime(
    device: str,
    amp: bool | None,
    channels_last: bool | None,
    graphs: bool = False,
    compiled: bool = False,
) -> Runtime:
    """The Runtime for --device auto|cpu|cuda[:N], --amp, --channels-last, --graphs and --compile.

    amp: None means on if the device multiplies bf16 in hardware; True stays on without such hardware, with a
    warning. channels_last: None means on for CUDA and off for the CPU. compiled: switched off, with a
    warning, if torch.compile does not work here.

    Under torchrun the process joins its job: with NCCL and one device for each process on CUDA, with gloo on
    the CPU. Ranks other than the first print nothing to stdout. Raises UsageError if CUDA or --graphs is
    asked for and there is no CUDA device.
    """
    rank = own_rank()
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    place = find_device(device, world_size)
    on_cuda = place.type == "cuda"
    if graphs and not on_cuda:
        raise UsageError("--graphs: CUDA graphs need a CUDA device, found cpu")
    has_bf16 = multiplies_bf16(place)
    if amp and not has_bf16:
        tell(
            f"warning: --amp: {place} has no bf16 instructions, so that bf16 is emulated; --no-amp is faster"
        )
    amp = has_bf16 if amp is None else amp
    if on_cuda:
        allow_tf32(amp)  # for the float32 work beside bf16; without --amp, float32 is exact
        torch.backends.cudnn.benchmark = True  # shapes stay the same for a whole run
    if graphs:
        # the default stream cannot be captured; a single stream needs no waiting
        torch.cuda.set_stream(torch.cuda.Stream())
    keep_freed_memory()
    if world_size > 1:
        join_job(rank, place)
    channels_last = on_cuda if channels_last is None else channels_last
    return Runtime(place, amp, channels_last, graphs, rank, world_size, compiled and finds_compiler(place))
