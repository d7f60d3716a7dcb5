"""Timing variants of a part in turn, each in a process of its own, and the arithmetic limit of the
machine."""

import gc
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
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.parts import ROWS
from engine.environment import peak_memory
from engine.runtime import Runtime, make_runtime
from utils import FailedRun, UsageError


class CountFlops(TorchDispatchMode):
    """Count the floating-point operations of products and convolutions in the block, gradients of gradients
    included.

    torch's FlopCounterMode is not used: it also follows modules, and refuses torch.autograd.grad within a
    step.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def serve(
    pipe, variant: str, row: str, size: tuple, device: str, execution: dict, threads: int | None, cache: str
) -> None:
    """Time one variant of one row in this process, on request.

    Answers ("run", n) with the seconds of n units, ("flops",) with the operations of one unit and ("memory",)
    with the peak memory in bytes; ("end",) ends it. cache: folder of torch.compile's cache.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    if variant in ("ours", "compiled"):
        runtime = make_runtime(device, **execution, compiled=variant == "compiled")
    else:
        runtime = Runtime(torch.device(device))
        if runtime.device.type == "cuda":
            torch.cuda.set_device(runtime.device)
    try:
        unit = ROWS[row](variant, runtime, *size)
        pipe.send("ready")
        while (request := pipe.recv())[0] != "end":
            if request[0] == "run":
                runtime.synchronize()
                start = time.perf_counter()
                for _ in range(request[1]):
                    unit()
                runtime.synchronize()
                pipe.send(time.perf_counter() - start)
            elif request[0] == "flops":
                with CountFlops() as counter:
                    unit()
                pipe.send(counter.total)
            else:
                pipe.send(peak_memory(runtime.device))
    except (FailedRun, RuntimeError, UsageError) as error:
        pipe.send(f"failed: {str(error).splitlines()[0]}")
    if variant == "loader":
        del unit  # its worker processes end with it
        gc.collect()


class Variant:
    """A process that times one variant of a row on request."""

    def __init__(self, context, *task):
        self.pipe, end = context.Pipe()
        self.process = context.Process(target=serve, args=(end, *task))
        self.process.start()
        end.close()
        self.take()

    def take(self):
        """Wait for the answer of the process. Raises MemoryError if its work failed, RuntimeError if it
        ended."""
        try:
            answer = self.pipe.recv()
        except EOFError:
            raise RuntimeError("the process that times a row ended") from None
        if isinstance(answer, str) and answer.startswith("failed"):
            raise MemoryError(answer)
        return answer

    def ask(self, *request):
        self.pipe.send(request)
        return self.take()

    def end(self) -> None:
        if self.process.is_alive():
            self.pipe.send(("end",))
        self.process.join()


def time_row(context, task: tuple, variants: list[str], pairs: int, least: float) -> dict:
    """Time the variants of a row: median, least and most seconds of a unit over `pairs` turns, and the ratios
    of each turn.

    least: least duration of one timing, in seconds.
    """
    with tempfile.TemporaryDirectory() as cache:
        return _time_row(context, (*task, cache), variants, pairs, least)


def _time_row(context, task: tuple, variants: list[str], pairs: int, least: float) -> dict:
    started, first = {}, {}
    try:
        if "compiled" in variants:
            cold = Variant(context, "compiled", *task)
            first["cold"] = cold.ask("run", 1)
            cold.end()
        for variant in variants:
            started[variant] = Variant(context, variant, *task)
        for variant, timed in started.items():
            first[variant] = timed.ask("run", 1)
            timed.ask(
                "run", 4 if task[2].startswith("cuda") else 1
            )  # warm-up: allocations, kernel choice, capture
        units = {v: max(1, round(least / max(timed.ask("run", 1), 1e-9))) for v, timed in started.items()}
        seconds = {variant: [] for variant in variants}
        for _ in range(pairs):
            for variant, timed in started.items():
                seconds[variant].append(timed.ask("run", units[variant]) / units[variant])
        row = {"seconds": {v: spread(values) for v, values in seconds.items()}, "pairs": pairs}
        row["ratio"] = {
            v: spread([b / a for a, b in zip(seconds["ours"], seconds[v], strict=True)])
            for v in variants
            if v != "ours"
        }
        if "compiled" in variants:  # the speed-up over uncompiled
            row["ratio"]["compiled"] = spread(
                [a / b for a, b in zip(seconds["ours"], seconds["compiled"], strict=True)]
            )
        if "compiled" in variants:
            usual = row["seconds"]["compiled"]["median"]
            gained = row["seconds"]["ours"]["median"] - usual
            row["compile_seconds"] = {
                "cold": max(0.0, first["cold"] - usual),
                "warm": max(0.0, first["compiled"] - usual),
            }
            row["pays_from_units"] = {
                name: math.ceil(s / gained) if gained > 0 else None
                for name, s in row["compile_seconds"].items()
            }
        row["flops"] = started["eager"].ask("flops")
        row["memory"] = {v: timed.ask("memory") for v, timed in started.items()}
        return row
    finally:
        for timed in started.values():
            timed.end()


def hardware(device: str) -> str:
    """The device's name; of a CPU also how many cores this process may use."""
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    cpus = Path("/proc/cpuinfo")
    models = (
        [
            line.partition(":")[2].strip()
            for line in cpus.read_text().splitlines()
            if line.startswith("model name")
        ]
        if cpus.exists()
        else []
    )
    return f"{len(os.sched_getaffinity(0)) if models else os.cpu_count()} cores of {models[0] if models else platform.machine()}"


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def product_rate(device: str, dtype: torch.dtype, threads: int | None, seconds: float = 2.0) -> float:
    """Best rate of matrix products, in FLOP a second, of the sizes that can be timed in about `seconds`.

    Each size is timed as `@` and as a convolution, since on a CPU these use different libraries. The matrices
    grow while the time allows, since a large product takes minutes where bf16 is emulated.
    """
    if threads:
        torch.set_num_threads(threads)
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None

    def turn(product: Callable[[], Tensor]) -> float:
        wait()
        start = time.perf_counter()
        with torch.no_grad():
            product()
        wait()
        return time.perf_counter() - start

    best = end = 0.0
    for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        picture, kernel = a.view(1, n, -1, 32), b.view(n, n, 1, 1)  # a 1 x 1 convolution is the same product
        products = (lambda: a @ b, lambda: F.conv2d(picture, kernel))  # noqa: B023  called within the turn
        if not end:  # the first products of a process load their libraries, which takes seconds on CUDA
            for product in products:
                turn(product)
            end = time.perf_counter() + seconds
        usual = [min(turn(product) for _ in range(3)) for product in products]
        best = max(best, 2 * n**3 / min(usual))
        if time.perf_counter() + 6 * 8 * max(usual) > end:  # the next size has eight times the work
            break
    return best
