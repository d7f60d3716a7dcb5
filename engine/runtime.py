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
from engine.precision import allow_tf32, emulation_factor, multiplies_bf16
from engine.ranks import join_job
from engine.seeds import derive_seed
from utils import FailedRun, UsageError, device_name, own_rank, tell


@dataclass(frozen=True)
class Runtime:
    """Device, precision and rank of a training step, and whether it is compiled or recorded as a CUDA
    graph."""

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
        return module.to(
            self.device, memory_format=torch.channels_last if self.channels_last else torch.preserve_format
        )

    def autocast(self) -> torch.autocast:
        """bf16 for the matrix products of the block; losses, penalties and optimisers belong outside it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    # execution

    def graphed(
        self, step: Callable[..., Losses], rng: torch.Generator | None = None
    ) -> Callable[..., Losses]:
        """`step` itself; with --graphs, a version that is captured as a CUDA graph and replayed (see
        Graphed).

        rng: a generator that the step draws from besides the device's default one.
        """
        if not self.graphs:
            return step
        memory = (
            torch.cuda.graph_pool_handle()
        )  # one for all recordings of a step: they are replayed one after another
        return Graphed(step, lambda work: record_graph(work, memory, rng))

    def call(self, module: nn.Module, *inputs: Any) -> Any:
        """module(*inputs); with --compile the forward pass is compiled (see compile_forward)."""
        return compile_forward(type(module).forward)(module, *inputs) if self.compile else module(*inputs)

    def compiled(self, method: Callable) -> Callable:
        """A method of modules; with --compile it is compiled (see compile_forward)."""
        return compile_forward(method) if self.compile else method

    def describe(self) -> str:
        """One line of text: device, threads, precision, memory layout and how a step is executed."""
        how = ["bf16 autocast" if self.amp else "float32", *(["channels-last"] if self.channels_last else [])]
        how += ["compiled" if self.compile else "eager", *(["CUDA graphs"] if self.graphs else [])]
        return ", ".join(
            [
                describe_device(self.device),
                *how,
                *([f"{self.world_size} processes"] if self.world_size > 1 else []),
            ]
        )

    def chosen(self) -> dict[str, Any]:
        """The values in use for the flags that may be left open, as plain values for args.json and result
        rows."""
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
        """Raise UsageError unless a global batch splits into equal shards of two or more images (BatchNorm
        needs two)."""
        if batch_size % self.world_size or batch_size < 2 * self.world_size:
            raise UsageError(
                f"{flag} {batch_size}: expected a multiple of the {self.world_size} processes, at least "
                f"{2 * self.world_size}"
            )

    def shard(self, index: Tensor) -> Tensor:
        """This rank's part of the indices (..., B) of a global batch."""
        return index if self.world_size == 1 else index.chunk(self.world_size, dim=-1)[self.rank]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Step `optimizer` on the gradients averaged over the ranks."""
        if self.world_size > 1:
            grads = [
                p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
            ]
            flat = torch.cat([grad.flatten() for grad in grads])
            self._collective(dist.all_reduce, flat)
            flat /= self.world_size
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
        found = self.gather(number)
        return max((n for n in found if n is not None), default=None)

    def gather(self, value: Any) -> list:
        """The values of all ranks, in the order of the ranks, returned on every rank. value: anything that
        can be pickled."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        self._collective(dist.all_gather_object, values, value)
        return values

    def spread(self, work: Callable[[Any], Any], jobs: Sequence) -> list:
        """[work(job) for job in jobs] on every rank; the jobs are divided among the ranks."""
        mine = {i: work(jobs[i]) for i in range(self.rank, len(jobs), self.world_size)}
        done = {i: result for part in self.gather(mine) for i, result in part.items()}
        return [done[i] for i in range(len(jobs))]

    def share_buffers(self, module: nn.Module) -> None:
        """Copy the first rank's buffers (BatchNorm statistics) to every rank; each rank had those of its own
        batches."""
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
        """Do `work` on the first rank. If it raises UsageError there, raise it on every rank, so that none
        waits for the others."""
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
            reason = str(error).splitlines()[0]
            raise FailedRun(
                f"another process of this job is gone ({reason}); the same command continues from the last "
                "checkpoint"
            ) from None


def find_device(device: str, world_size: int = 1) -> torch.device:
    """The device named by --device auto|cpu|cuda[:N], made the current CUDA device. Each of several processes
    gets its own.

    Raises UsageError if the device does not exist.
    """
    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UsageError(
                f"--device {device}: no CUDA device is available to torch {torch.__version__}, expected cpu "
                "or auto"
            )
        if world_size > 1 and ":" in name:
            raise UsageError(
                f"--device {device}: names one device for {world_size} processes, expected cuda, a device "
                "each"
            )
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size > 1 else 1
        if here > torch.cuda.device_count():
            raise UsageError(
                f"--device {device}: found {torch.cuda.device_count()} CUDA devices for {here} processes, "
                "expected one each"
            )
        index = (
            int(os.environ.get("LOCAL_RANK", 0))
            if world_size > 1
            else int(name.partition(":")[2] or torch.cuda.current_device())
        )
        if index >= torch.cuda.device_count():
            raise UsageError(
                f"--device {device}: found {torch.cuda.device_count()} CUDA devices, numbered from 0"
            )
        torch.cuda.set_device(index)
        name = f"cuda:{index}"
    return torch.device(name)


def add_execution_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that say how steps are executed, the same in every script; make_runtime resolves
    them."""
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="bf16 autocast (default: where the device has bf16 instructions)",
    )
    parser.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="channels-last memory layout (default: on CUDA)",
    )
    parser.add_argument(
        "--graphs",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="replay each step as one CUDA graph",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="fuse classifiers and pool networks by torch.compile",
    )


def make_runtime(
    device: str,
    amp: bool | None,
    channels_last: bool | None,
    graphs: bool | None = False,
    compiled: bool | None = False,
) -> Runtime:
    """The Runtime for --device auto|cpu|cuda[:N], --amp, --channels-last, --graphs and --compile.

    amp: None means on if the device multiplies bf16 in hardware; True stays on without such hardware, with a
    warning. channels_last: None means on for CUDA and off for the CPU. compiled: switched off, with a
    warning, if torch.compile does not work here.

    Under torchrun the process joins its job: with NCCL and one device for each process on CUDA, with gloo on
    the CPU. Ranks other than the first print nothing to stdout. Raises UsageError if CUDA or --graphs is
    asked for and there is no CUDA device.
    """
    rank, world_size = own_rank(), int(os.environ.get("WORLD_SIZE", 1))
    place = find_device(device, world_size)
    on_cuda = place.type == "cuda"
    if graphs and not on_cuda:
        raise UsageError("--graphs: CUDA graphs need a CUDA device, found cpu")
    has_bf16 = multiplies_bf16(place)
    if amp and not has_bf16:
        tell(
            f"warning: --amp: {place} has no bf16 instructions, so that bf16 is emulated: a 3x3 convolution "
            "takes "
            f"{emulation_factor(place):.0f} times as long as in float32; --no-amp is faster"
        )
    amp = has_bf16 if amp is None else amp
    if on_cuda:
        allow_tf32(amp)  # for the float32 work beside bf16; without --amp, float32 is exact
        torch.backends.cudnn.benchmark = True  # shapes stay the same for a whole run
    if graphs:
        torch.cuda.set_stream(
            torch.cuda.Stream()
        )  # the default stream cannot be captured; a single stream needs no waiting
    keep_freed_memory()
    if world_size > 1:
        join_job(rank, place)
    channels_last = on_cuda if channels_last is None else channels_last
    return Runtime(
        place, amp, channels_last, bool(graphs), rank, world_size, bool(compiled) and finds_compiler(place)
    )
