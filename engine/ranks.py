"""Joining and leaving the job of several processes that torchrun starts."""

import datetime
import os
import sys

import torch
import torch.distributed as dist

from engine.graphs import GRAPHED
from utils import AT_END


def join_job(rank: int, device: torch.device) -> None:
    """Join the process group of torchrun's job; ranks other than the first no longer print to stdout."""
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        # an evaluation on one rank may take hours while the others wait
        dist.init_process_group(backend, timeout=datetime.timedelta(days=7))
        AT_END.append(leave_job)
        if device.type == "cpu":
            dist.barrier()  # a rank that stops at once, at bad input, must not break the joining of others
    if rank > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for the life of the process


def leave_job() -> None:
    """Leave the process group. CUDA graphs that hold NCCL calls are freed first, since NCCL waits for them.

    A group of gloo ends with the process: torch 2.6 may wait for ever to destroy one whose other processes
    have left.
    """
    for graphed in list(GRAPHED):
        graphed.recorded.clear()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    if dist.get_backend() == "nccl":
        dist.destroy_process_group()
