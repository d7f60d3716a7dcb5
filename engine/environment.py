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
    """The commit of this code, with "-dirty-HASH" if tracked files are changed; "unknown" outside git."""

    def git(*command: str) -> bytes:
        command = ("git", "-C", str(ROOT), *command)
        return subprocess.run(command, capture_output=True, check=True).stdout.strip()

    try:
        head = git("rev-parse", "HEAD").decode(errors="replace")
        changes = git("diff", "HEAD")
        return f"{head}-dirty-{hashlib.sha256(changes).hexdigest()[:8]}" if changes else head
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_device(device: torch.device) -> str:
    """The GPU's name, or "cpu" with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} threads"


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides its flags: commit, torch, device."""
    return {"commit": commit(), "torch": torch.__version__, "device": describe_device(device)}


def keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory for the next step.

    By default malloc returns large blocks to the system and requests them again, page by page, at every step.
    On a CPU this may take longer than the arithmetic. With another C library nothing is changed.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX of malloc.h: take large blocks from the heap too, which is not trimmed
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        mallopt(-2, 1 << 26)  # M_TOP_PAD


def peak_memory(device: torch.device) -> int:
    """Peak memory of this process in bytes: reserved by torch on CUDA, resident on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
