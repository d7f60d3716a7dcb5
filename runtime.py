"""Device, precision, memory layout, compilation, CUDA graphs and ranks: how a step is executed, never what it computes."""

import argparse
import contextlib
import ctypes
import datetime
import functools
import itertools
import logging
import os
import subprocess
import sys
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from utils import AT_END, FailedRun, UsageError, derive_seed, describe_device, own_rank, tell

Losses = dict[str, Tensor]


@dataclass(frozen=True)
class Runtime:
    """Device, precision and rank of a training step, and whether it is compiled or recorded as a CUDA graph."""

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
        """Move `module` to the device, its convolution weights in the memory layout chosen."""
        return module.to(self.device, memory_format=torch.channels_last if self.channels_last else torch.preserve_format)

    def autocast(self) -> torch.autocast:
        """bf16 for the matrix products of the block; losses, penalties and optimisers belong outside it."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp)

    # execution

    def graphed(self, step: Callable[..., Losses], rng: torch.Generator | None = None) -> Callable[..., Losses]:
        """`step` itself, or with --graphs one that is captured as a CUDA graph and replayed: see Graphed.

        rng: random numbers of its own that the step draws from, beside the device's.
        """
        if not self.graphs:
            return step
        memory = torch.cuda.graph_pool_handle()  # one for all recordings of a step: they are replayed one after another
        return Graphed(step, lambda work: record_graph(work, memory, rng))

    def call(self, module: nn.Module, *inputs: Any) -> Any:
        """module(*inputs), with --compile through what torch.compile makes of its forward pass: see compile_forward."""
        return compile_forward(type(module).forward)(module, *inputs) if self.compile else module(*inputs)

    def compiled(self, method: Callable) -> Callable:
        """A method of modules, or with --compile what torch.compile makes of it: see compile_forward."""
        return compile_forward(method) if self.compile else method

    def describe(self) -> str:
        """One line for the reader: device, threads, precision, layout and how a step is run."""
        how = ["bf16 autocast" if self.amp else "float32", *(["channels-last"] if self.channels_last else [])]
        how += ["compiled" if self.compile else "eager", *(["CUDA graphs"] if self.graphs else [])]
        return ", ".join([describe_device(self.device), *how, *([f"{self.world_size} processes"] if self.world_size > 1 else [])])

    def chosen(self) -> dict[str, Any]:
        """What was chosen where flags left it open, as plain values for args.json and result rows."""
        return {"device": str(self.device), "amp": self.amp, "channels_last": self.channels_last, "compile": self.compile}

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read next is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # ranks

    def own_seed(self, *parts: int | str) -> int:
        """derive_seed(*parts), another one on each rank but the first."""
        return derive_seed(*parts) if self.is_main else derive_seed(*parts, "rank", self.rank)

    def check_batch_size(self, batch_size: int) -> None:
        """Raise UsageError where a global batch does not fall into equal shards of two images or more (BatchNorm needs two)."""
        if batch_size % self.world_size or batch_size < 2 * self.world_size:
            raise UsageError(
                f"--batch-size {batch_size}: expected a multiple of the {self.world_size} processes, at least {2 * self.world_size}"
            )

    def shard(self, index: Tensor) -> Tensor:
        """This rank's part of the indices (..., B) of a global batch."""
        return index if self.world_size == 1 else index.chunk(self.world_size, dim=-1)[self.rank]

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Step `optimizer` on the gradients averaged over the ranks."""
        if self.world_size > 1:
            grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
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
        """The largest number that any rank brings; None where none does."""
        found = self.gather(number)
        return max((n for n in found if n is not None), default=None)

    def gather(self, value: Any) -> list:
        """The plain value of every rank, in their order, on every rank."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        self._collective(dist.all_gather_object, values, value)
        return values

    def spread(self, work: Callable[[Any], Any], jobs: Sequence) -> list:
        """[work(job) for job in jobs], the jobs dealt out to the ranks, on every rank."""
        mine = {i: work(jobs[i]) for i in range(self.rank, len(jobs), self.world_size)}
        done = {i: result for part in self.gather(mine) for i, result in part.items()}
        return [done[i] for i in range(len(jobs))]

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the first one's BatchNorm statistics, which each keeps of its own batches."""
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
        """Do `work` on the first rank; a UsageError there is one on every rank, so that none waits for the others."""
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
                f"another process of this job is gone ({reason}); the same command continues from the last checkpoint"
            ) from None


GRAPHED: weakref.WeakSet = weakref.WeakSet()  # those whose recordings must go before the job's connections do


class Graphed:
    """A step that is run as it is for its first calls, then recorded once and replayed.

    step(*tensors, **settings) -> {name: tensor}. Each combination of the tensors' shapes and types and of the (hashable)
    settings has its own recording. The first calls are steps like any other: they settle what is allocated once (optimiser
    state, the choice of kernels), and recording itself computes nothing, so that the steps taken are the caller's, no more
    and no fewer. What the step reads beside its tensors must stay where it is in memory.
    record(work) -> (what work returned, replay): replay does the same again on the same memory.
    """

    WARMUP = 3

    def __init__(self, step: Callable[..., Losses], record: Callable[[Callable[[], Losses]], tuple[Losses, Callable[[], None]]]):
        self.step, self.record = step, record
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
        return {name: value.clone() for name, value in outputs.items()}  # another recording may reuse their memory


def record_graph(work: Callable[[], Losses], memory: tuple, rng: torch.Generator | None) -> tuple[Losses, Callable[[], None]]:
    """Capture `work` as a CUDA graph on the current stream, which must not be the default one; `memory` is a graph pool."""
    graph = torch.cuda.CUDAGraph()
    if rng is not None:
        graph.register_generator_state(rng)
    try:
        with torch.cuda.graph(graph, memory, torch.cuda.current_stream(), "thread_local"):
            outputs = {name: value.detach() for name, value in work().items()}
    except RuntimeError as error:
        if out_of_memory := _find_out_of_memory(error):
            raise out_of_memory from None
        reason = str(error).splitlines()[0]
        raise FailedRun(f"the step could not be captured as a CUDA graph ({reason}); --no-graphs runs it as it is") from error
    return outputs, graph.replay


def _find_out_of_memory(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The lack of memory behind an error: a capture that it broke off ends with an error of its own."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__cause__ or error.__context__
    return error


@functools.lru_cache
def _side_streams(n: int, device: torch.device) -> list[torch.cuda.Stream]:
    """The same ones at each call: memory that is freed on a stream is kept for that stream."""
    return [torch.cuda.Stream(device) for _ in range(n)]


class Lanes:
    """n blocks whose work may overlap on the device, entered again and again: `with lanes[i]: ...`; at the end lanes.join()."""

    def __init__(self, n: int, device: torch.device):
        self.streams = _side_streams(n, device) if n > 1 and device.type == "cuda" else []
        for stream in self.streams:
            stream.wait_stream(torch.cuda.current_stream())

    def __getitem__(self, i: int) -> contextlib.AbstractContextManager:
        return torch.cuda.stream(self.streams[i]) if self.streams else contextlib.nullcontext()

    @property
    def overlap(self) -> int:
        """How many may run at the same time."""
        return max(1, len(self.streams))

    def join(self) -> None:
        """What follows waits for the lanes."""
        for stream in self.streams:
            torch.cuda.current_stream().wait_stream(stream)


class Stopwatch:
    """Seconds that the device spent in `with watch:` blocks, summed, without making the host wait until they are asked for."""

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
        """Of all blocks so far; waits for the last."""
        if not self.cuda:
            return sum(end - start for start, end in self.laps)
        torch.cuda.current_stream().synchronize()
        return sum(start.elapsed_time(end) for start, end in self.laps) / 1000


class Draws(NamedTuple):
    """The random numbers of one classifier's training: of the choices that the host makes, and of tensors on the device."""

    host: torch.Generator
    device: torch.Generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "Draws":
        """Both from `seed`; on the CPU they are one stream."""
        host = torch.Generator().manual_seed(derive_seed(seed, "train"))
        return cls(host, host if device.type == "cpu" else torch.Generator(device).manual_seed(derive_seed(seed, "train")))


def fused(parameters: list[nn.Parameter]) -> dict[str, bool]:
    """Arguments of an optimiser for one kernel a step where the parameters are on CUDA."""
    return {"fused": True} if parameters[0].is_cuda else {}


def make_sgd(parameters: list[nn.Parameter], lr: float) -> torch.optim.SGD:
    """SGD with momentum 0.9 and weight decay 5e-4. On CUDA its rate lives on the device, where a CUDA graph reads it."""
    rate = torch.tensor(lr, device=parameters[0].device) if parameters[0].is_cuda else lr
    return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=5e-4, **fused(parameters))


def make_adam(parameters: list[nn.Parameter], lr: float) -> torch.optim.Adam:
    """Adam with betas 0.0 and 0.9. On CUDA its rate and its step count live on the device, where a CUDA graph reads them."""
    if not parameters[0].is_cuda:
        return torch.optim.Adam(parameters, lr=lr, betas=(0.0, 0.9))
    rate = torch.tensor(lr, device=parameters[0].device)
    return torch.optim.Adam(parameters, lr=rate, betas=(0.0, 0.9), fused=True, capturable=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Change the rate, where it lies if that is on the device."""
    for group in optimizer.param_groups:
        if torch.is_tensor(group["lr"]):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """load_state_dict, but how the steps are executed stays this optimiser's, and so does the rate, which lies on its device.

    A checkpoint may come from another one.
    """
    own = {name: optimizer.param_groups[0].get(name) for name in ("foreach", "fused", "capturable", "lr")}
    groups = [group | {name: value for name, value in own.items() if name in group} for group in state["param_groups"]]
    optimizer.load_state_dict(state | {"param_groups": groups})
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if torch.is_tensor(value) and value.shape == parameter.shape:  # in the memory layout that the parameter has here
                values[name] = torch.empty_like(parameter).copy_(value)


def find_device(device: str, world_size: int = 1) -> torch.device:
    """What --device auto|cpu|cuda[:N] names, made the current one; of several processes each has its own.

    Raises UsageError where it is not there.
    """
    name = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise UsageError(f"--device {device}: no CUDA device is available to torch {torch.__version__}, expected cpu or auto")
        if world_size > 1 and ":" in name:
            raise UsageError(f"--device {device}: names one device for {world_size} processes, expected cuda, a device each")
        here = int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if world_size > 1 else 1
        if here > torch.cuda.device_count():
            raise UsageError(f"--device {device}: found {torch.cuda.device_count()} CUDA devices for {here} processes, expected one each")
        index = int(os.environ.get("LOCAL_RANK", 0)) if world_size > 1 else int(name.partition(":")[2] or torch.cuda.current_device())
        if index >= torch.cuda.device_count():
            raise UsageError(f"--device {device}: found {torch.cuda.device_count()} CUDA devices, numbered from 0")
        torch.cuda.set_device(index)
        name = f"cuda:{index}"
    return torch.device(name)


def make_runtime(
    device: str, amp: bool | None, channels_last: bool | None, graphs: bool | None = False, compiled: bool | None = False
) -> Runtime:
    """Resolve --device auto|cpu|cuda[:N], --amp, --channels-last (None: on for CUDA, off for the CPU), --graphs and --compile.

    amp None: on where the device multiplies bf16 in hardware. Asked for elsewhere it stays on, with a warning. compiled stays off, with
    a warning, where torch.compile finds no compiler.

    Under torchrun the process joins its job: NCCL on CUDA, a device each, gloo on the CPU; ranks other than the first are
    silent on stdout. Raises UsageError where CUDA is asked for and not there.
    """
    rank, world_size = own_rank(), int(os.environ.get("WORLD_SIZE", 1))
    place = find_device(device, world_size)
    on_cuda = place.type == "cuda"
    if graphs and not on_cuda:
        raise UsageError("--graphs: CUDA graphs need a CUDA device, found cpu")
    has_bf16 = multiplies_bf16(place)
    if amp and not has_bf16:
        tell(
            f"warning: --amp: {place} has no bf16 instructions, so that bf16 is emulated: a 3x3 convolution takes "
            f"{emulation_factor(place):.0f} times as long as in float32; --no-amp is faster"
        )
    amp = has_bf16 if amp is None else amp
    if on_cuda:
        allow_tf32(amp)  # where float32 is left beside bf16; without --amp, float32 means float32
        torch.backends.cudnn.benchmark = True  # shapes stay the same for a whole run
    if graphs:
        torch.cuda.set_stream(torch.cuda.Stream())  # the default stream cannot be captured, and one stream needs no waiting
    keep_freed_memory()
    if world_size > 1:
        join_job(rank, place)
    channels_last = on_cuda if channels_last is None else channels_last
    return Runtime(place, amp, channels_last, bool(graphs), rank, world_size, bool(compiled) and finds_compiler(place))


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16 products, by what it says of itself: the same answer on the same machine.

    CUDA: compute capability 8.0 (Ampere) or later. CPU: AVX512-BF16, AMX or Arm's BF16, of Linux's /proc/cpuinfo or macOS's sysctl;
    elsewhere False.
    """
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & cpu_features())


@functools.lru_cache
def cpu_features() -> frozenset[str]:
    """The names that the CPU gives its instruction sets; empty where they cannot be read."""
    if sys.platform == "darwin":
        asked = subprocess.run(("sysctl", "-n", "hw.optional.arm.FEAT_BF16"), capture_output=True, text=True)
        return frozenset({"bf16"} if asked.stdout.strip() == "1" else ())
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as cpus:
        for line in cpus:
            name, _, value = line.partition(":")
            if name.strip() in ("flags", "Features"):
                return frozenset(value.split())
    return frozenset()


def emulation_factor(device: torch.device) -> float:
    """How many times as long as in float32 a small 3x3 convolution takes in bf16, with its gradients; for a warning, never a choice."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        images = torch.ones(8, 32, 16, 16, device=device, dtype=dtype, requires_grad=True)
        kernel = torch.ones(32, 32, 3, 3, device=device, dtype=dtype, requires_grad=True)
        times = []
        for _ in range(4):  # the first allocates and chooses kernels
            start = time.perf_counter()
            torch.autograd.grad(F.conv2d(images, kernel, padding=1).sum(), (images, kernel))
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        seconds[dtype] = min(times[1:])
    return seconds[torch.bfloat16] / seconds[torch.float32]


@functools.lru_cache
def finds_compiler(device: torch.device) -> bool:
    """Whether torch.compile works here; where it does not, one line says why."""
    for name in ("torch.utils.cpp_extension", "torch._inductor"):
        logging.getLogger(name).setLevel(logging.ERROR)  # notes for torch's developers
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
        return True
    except Exception as error:  # compilers and their absence fail in any way
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        tell(f"warning: --compile: torch.compile does not work here ({reason[:200]}), so steps run eagerly")
        return False


COMPILED_VARIANTS = 64  # of one forward pass: networks, operations of augmentation, train and eval mode, with and without gradients
COMPILED_BATCH = 16  # images from which on a batch is compiled for; torch would compile another variant for fewer


@functools.lru_cache
def compile_forward(forward: Callable) -> Callable:
    """torch.compile of forward(module, *inputs), shared by all modules; inputs are tensors, Augmentations or None.

    The first dimension of every tensor is compiled for any size, the others for the size found, so that a batch of another size compiles
    nothing anew; modules of one architecture share their code. Batches of fewer than COMPILED_BATCH images run as they are. Random
    numbers are drawn outside. Raises FailedRun where compiling fails.
    """
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"  # until torch 2.6
    setattr(torch._dynamo.config, limit, COMPILED_VARIANTS)

    def rebuilt(module: nn.Module, *inputs):
        return forward(module, *(value[0](*value[1:]) if isinstance(value, tuple) else value for value in inputs))

    fast = torch.compile(rebuilt, dynamic=False)  # no size is guessed to change; those that do are marked below

    def call(module: nn.Module, *inputs):
        if len(inputs[0]) < COMPILED_BATCH:
            return forward(module, *inputs)
        for value in inputs:
            tensors = itertools.chain(*value.parameters) if is_dataclass(value) else [value] if torch.is_tensor(value) else []
            for tensor in tensors:
                if tensor.dim() and len(tensor) > 1:
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
        # A dataclass goes in by its type and its fields: torch 2.6 takes each instance for another constant, and compiles for each anew.
        inputs = [(type(value), *vars(value).values()) if is_dataclass(value) else value for value in inputs]
        try:
            with warnings.catch_warnings():  # tracing looks at .grad of inputs that are no leaves, and warns of it
                warnings.simplefilter("ignore", UserWarning)
                return fast(module, *inputs)
        except torch._dynamo.exc.BackendCompilerFailed as error:
            reason = str(error.inner_exception).splitlines()[0]
            raise FailedRun(f"the step could not be compiled ({reason}); --no-compile runs it as it is") from error

    return call


def allow_tf32(on: bool) -> None:
    """Round the factors of float32 products and convolutions on CUDA to TF32, or do not.

    torch 2.9 and later have two families of names for this, and raise where the older ones are read while the two disagree.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some releases of torch warn of the older names
        matmul.allow_tf32 = cudnn.allow_tf32 = on
    if hasattr(matmul, "fp32_precision"):
        matmul.fp32_precision = cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if on else "ieee"


def join_job(rank: int, device: torch.device) -> None:
    """Meet the other processes that torchrun started."""
    if not dist.is_initialized():
        # an evaluation on one rank may take hours while the others wait; torchrun ends the job when a process dies
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=datetime.timedelta(days=7))
        AT_END.append(leave_job)
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the life of the process


def leave_job() -> None:
    """Part from the other processes. NCCL waits for the graphs that hold its calls, so these go first."""
    for graphed in list(GRAPHED):
        graphed.recorded.clear()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    dist.destroy_process_group()


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed for the next step.

    By default it hands large blocks back to the system and gets them again, page by page, at every step, which on a CPU may
    take longer than the arithmetic. Another C library keeps its own ways.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)  # large blocks too lie on the heap, whose end does not come back
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 1 << 26)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most: of the device, or on the CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_name(text: str) -> str:
    """An argparse type: auto, cpu, cuda or cuda:N."""
    kind, _, index = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"found {text!r}, expected auto, cpu, cuda or cuda:N")
