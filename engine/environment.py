"""What a result depends on besides its flags: commit, torch, device; and the memory of the process."""

import contextlib
import ctypes
import hashlib
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent


def commit() -> str:
    """The commit of this code, followed by "-dirty-HASH" if tracked files are changed; "unknown" outside a
    git checkout."""

    def git(*command: str) -> str:
        text = {"encoding": "utf-8", "errors": "replace"}  # a changed file may hold any bytes
        return subprocess.run(
            ("git", "-C", str(ROOT), *command), capture_output=True, check=True, **text
        ).stdout.strip()

    try:
        changes = git("diff", "HEAD")
        return git("rev-parse", "HEAD") + (
            f"-dirty-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_device(device: torch.device) -> str:
    """The GPU's name, or "cpu" with the number of threads."""
    return (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads"
    )


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides its flags: commit, torch, device."""
    return {"commit": commit(), "torch": torch.__version__, "device": describe_device(device)}


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory for the next step.

    By default malloc returns large blocks to the system and requests them again, page by page, at every step.
    On a CPU this may take longer than the arithmetic. With another C library nothing is changed.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(mmap_max, 0)  # take large blocks from the heap too, which is not trimmed
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 1 << 26)


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: on CUDA what torch reserved on the device, on the CPU the
    resident set size."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
