"""Time variants of a part in alternation, each in a process of its own."""

import contextlib
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from benchmarks.parts import PARTS
from engine.environment import peak_memory
from engine.runtime import Runtime, make_runtime
from utils import FailedRun


def set_up(execution: dict | None, part: str, size: tuple, device: str, threads: int, cache: str) -> None:
    """Build one variant of a part in this process.

    execution: settings of make_runtime; None = plain PyTorch in float32. cache: folder of torch.compile's
    cache.
    """
    global runtime, unit
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    runtime = make_runtime(device, **execution) if execution else Runtime(torch.device(device))
    if runtime.device.type == "cuda":
        torch.cuda.set_device(runtime.device)
    unit = PARTS[part](runtime, *size)


def seconds_of(n: int) -> float:
    """The seconds of n units of this process."""
    runtime.synchronize()
    start = time.perf_counter()
    for _ in range(n):
        unit()
    runtime.synchronize()
    return time.perf_counter() - start


def memory() -> int:
    """The peak memory of this process in bytes."""
    return peak_memory(runtime.device)


def time_row(context, variants: dict[str, dict | None], task: tuple, pairs: int, least: float) -> dict:
    """Seconds of a unit of each variant over `pairs` rounds, and the ratios of two variants in a round.

    variants: name -> execution (see set_up). task: part, size, device and threads. least: least duration of
    one timing, in seconds. Raises FailedRun where a process fails, as for a lack of memory.
    """
    with tempfile.TemporaryDirectory() as cache, contextlib.ExitStack() as ends:

        def start(name: str, ends: contextlib.ExitStack) -> Callable:
            """Start a process for a variant; what is returned calls a function there."""
            own = (variants[name], *task, cache)
            pool = ends.enter_context(ProcessPoolExecutor(1, context, initializer=set_up, initargs=own))
            return lambda *call: pool.submit(*call).result()

        try:
            if "compiled" in variants:
                with contextlib.ExitStack() as once:  # with an empty cache
                    cold = start("compiled", once)(seconds_of, 1)
            started = {name: start(name, ends) for name in variants}
            first = {}
            for name, ask in started.items():
                first[name] = ask(seconds_of, 1)
                # allocations, kernel choice, capture
                ask(seconds_of, 4 if task[2].startswith("cuda") else 1)
            units = {name: max(1, round(least / ask(seconds_of, 1))) for name, ask in started.items()}
            seconds = {name: [] for name in variants}
            for _ in range(pairs):
                for name, ask in started.items():
                    seconds[name].append(ask(seconds_of, units[name]) / units[name])
            peaks = {name: ask(memory) for name, ask in started.items()}
        except RuntimeError as error:
            raise FailedRun(f"timing a row failed, the rows so far are kept: {error}") from None
    row = {"seconds": {name: spread(values) for name, values in seconds.items()}, "pairs": pairs}
    row |= {"ratio": {"eager": ratios(seconds["eager"], seconds["ours"])}, "memory": peaks}
    if "compiled" in variants:
        usual = row["seconds"]["compiled"]["median"]
        gained = row["seconds"]["ours"]["median"] - usual
        compiling = {"cold": max(0.0, cold - usual), "warm": max(0.0, first["compiled"] - usual)}
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
