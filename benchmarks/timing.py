"""Time variants of a part in alternation, each in a process of its own, and the arithmetic limit."""

import contextlib
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.parts import PARTS
from engine.environment import peak_memory
from engine.runtime import Runtime, make_runtime
from utils import FailedRun


class CountFlops(TorchDispatchMode):
    """Count the floating-point operations of products and convolutions in the block.

    Gradients of gradients are included. torch's FlopCounterMode is not used: it also follows modules, and
    refuses torch.autograd.grad within a step.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def serve(pipe, execution: dict | None, part: str, size: tuple, device: str, threads: int, cache: str):
    """Time one variant of a part in this process, on request.

    execution: settings of make_runtime; None = plain PyTorch in float32. cache: folder of torch.compile's
    cache. A number n is answered with the seconds of n units, "flops" with the operations of one unit and
    "memory" with the peak memory in bytes; "end" ends the process.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    runtime = make_runtime(device, **execution) if execution else Runtime(torch.device(device))
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)
    unit = PARTS[part](runtime, *size)

    def seconds(n: int) -> float:
        runtime.synchronize()
        start = time.perf_counter()
        for _ in range(n):
            unit()
        runtime.synchronize()
        return time.perf_counter() - start

    while (request := pipe.recv()) != "end":
        if request == "flops":
            with CountFlops() as counter:
                unit()
            pipe.send(counter.total)
        else:
            pipe.send(peak_memory(runtime.device) if request == "memory" else seconds(request))


class Variant:
    """A process that times one variant of a part on request."""

    def __init__(self, context, *task):
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, *task))
        self.process.start()
        end.close()

    def ask(self, request: int | str):
        """The answer of the process. Raises FailedRun if it ended, as for a lack of memory."""
        try:
            self.pipe.send(request)
            return self.pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise FailedRun("the process that times a row ended; the rows so far are kept") from None

    def end(self) -> None:
        if self.process.is_alive():
            self.pipe.send("end")
        self.process.join()


def time_row(context, variants: dict[str, dict | None], task: tuple, pairs: int, least: float) -> dict:
    """Seconds of a unit of each variant over `pairs` rounds, and the ratios of two variants in a round.

    variants: name -> execution (see serve). task: part, size, device and threads. least: least duration of
    one timing, in seconds.
    """
    with tempfile.TemporaryDirectory() as cache, contextlib.ExitStack() as ends:

        def start(name: str) -> Variant:
            variant = Variant(context, variants[name], *task, cache)
            ends.callback(variant.end)
            return variant

        if "compiled" in variants:  # with an empty cache
            cold = start("compiled")
            cold_seconds = cold.ask(1)
            cold.end()
        started = {name: start(name) for name in variants}
        first = {}
        for name, variant in started.items():
            first[name] = variant.ask(1)
            variant.ask(4 if task[2].startswith("cuda") else 1)  # allocations, kernel choice, capture
        units = {name: max(1, round(least / variant.ask(1))) for name, variant in started.items()}
        seconds = {name: [] for name in variants}
        for _ in range(pairs):
            for name, variant in started.items():
                seconds[name].append(variant.ask(units[name]) / units[name])
        flops = started["eager"].ask("flops")
        memory = {name: variant.ask("memory") for name, variant in started.items()}
    row = {"seconds": {name: spread(values) for name, values in seconds.items()}, "pairs": pairs}
    row |= {"ratio": {"eager": ratios(seconds["eager"], seconds["ours"])}, "flops": flops, "memory": memory}
    if "compiled" in variants:
        usual = row["seconds"]["compiled"]["median"]
        gained = row["seconds"]["ours"]["median"] - usual
        compiling = {"cold": max(0.0, cold_seconds - usual), "warm": max(0.0, first["compiled"] - usual)}
        row["ratio"]["compiled"] = ratios(seconds["ours"], seconds["compiled"])
        row["compile_seconds"] = compiling
        row["pays_from_units"] = {
            name: math.ceil(s / gained) if gained > 0 else None for name, s in compiling.items()
        }
    return row


def hardware(device: str) -> str:
    """The device's name; of a CPU also how many cores this process may use."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    for line in cpus.read_text().splitlines() if cpus.exists() else ():
        if line.startswith("model name"):
            return f"{len(os.sched_getaffinity(0))} cores of {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} cores of {platform.machine()}"


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(above: list[float], below: list[float]) -> dict[str, float]:
    return spread([a / b for a, b in zip(above, below, strict=True)])


def product_rate(device: str, dtype: torch.dtype, seconds: float = 2.0) -> float:
    """Best rate of matrix products, in FLOP a second, of the sizes that can be timed in about `seconds`.

    Each size is timed as `@` and as a convolution, since on a CPU these use different libraries. The matrices
    grow while the time allows, since a large product takes minutes where bf16 is emulated.
    """
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def timed(product: Callable[[], torch.Tensor]) -> float:
        wait()
        start = time.perf_counter()
        with torch.no_grad():
            product()
        wait()
        return time.perf_counter() - start

    best = end = 0.0
    for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        a, b = torch.randn(2, n, n, device=device, dtype=dtype)
        picture = a.view(1, n, -1, 32)
        kernel = b.view(n, n, 1, 1)  # a 1 x 1 convolution is the same product
        products = (lambda: a @ b, lambda: F.conv2d(picture, kernel))  # noqa: B023  called at once
        if not end:  # the first products of a process load their libraries, which takes seconds on CUDA
            for product in products:
                timed(product)
            end = time.perf_counter() + seconds
        usual = [min(timed(product) for _ in range(3)) for product in products]
        best = max(best, 2 * n**3 / min(usual))
        if time.perf_counter() + 6 * 8 * max(usual) > end:  # the next size has eight times the work
            break
    return best
