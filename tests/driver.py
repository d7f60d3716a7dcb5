"""Run a training script as a process of its own, counting its steps, and dying where it is told to.

    python tests/driver.py SCRIPT COUNTER [FLAG ...]

Appends a byte to the file COUNTER for each training step. KILL_AT_WRITE=N kills the process with SIGKILL in the middle
of its Nth write of a checkpoint; KILL_AFTER_WRITE=N right after it was renamed into place.
"""

import importlib
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import models.gan
import run_folder


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


script = importlib.import_module(sys.argv[1])
counter = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
discriminator_step = models.gan.discriminator_step


def counted(*args):
    loss = discriminator_step(*args)
    os.write(counter, b".")
    return loss


script.discriminator_step = counted

writes = 0
save, write_atomic = torch.save, run_folder.write_atomic


def torn_save(state, path):
    global writes
    writes += 1
    save(state, path)
    if writes == int(os.environ.get("KILL_AT_WRITE", 0)):
        os.truncate(path, os.path.getsize(path) // 2)
        die()


def last_write(path, write):
    write_atomic(path, write)
    if path.suffix == ".pth" and writes == int(os.environ.get("KILL_AFTER_WRITE", 0)):
        die()


torch.save, run_folder.write_atomic = torn_save, last_write
torch.set_num_threads(1)
script.main(script.parse_args(sys.argv[3:]))
