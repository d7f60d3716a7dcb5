"""Run training scripts as processes that can be killed: a server that forks one for each request.

Reads JSON lines {"script", "flags", "counter", "kill_at_write", "kill_after_write", "ranks"} on stdin.
Answers {"pids"} when the processes start, one for each rank, and {"statuses"} when all ended, as subprocess's
return codes. The first appends a byte to the file `counter` for each training step, and kills itself with
SIGKILL in the middle of its Nth write of a file, or right after that was renamed into place. Evaluations are
a figure taken from the weights. Forking saves the seconds that importing torch takes.
"""

import importlib
import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch._dynamo  # which the first optimiser would import, in two seconds of each process
from sklearn import datasets  # noqa: F401  imported here once, for the digits
from torch.utils import tensorboard  # noqa: F401  likewise

import gen_condense  # noqa: F401
import models.gan
import pool_match  # noqa: F401
import utils
from engine import files


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def work(request: dict) -> None:
    """Become the script."""
    script = importlib.import_module(request["script"])
    counter = os.open(request["counter"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    step, write_atomic = models.gan.discriminator_step, files.write_atomic
    writes = 0

    def counted_step(*args):
        loss = step(*args)
        if utils.own_rank() == 0:
            os.write(counter, b".")
        return loss

    def counted_write(path, write):
        nonlocal writes
        writes += 1
        this = writes

        def maybe_torn(temporary):
            write(temporary)
            if this == request["kill_at_write"]:
                os.truncate(temporary, os.path.getsize(temporary) // 2)
                die()

        write_atomic(path, maybe_torn)
        if this == request["kill_after_write"]:
            die()

    script.discriminator_step = counted_step
    for module in list(sys.modules.values()):
        if (
            vars(module).get("write_atomic") is write_atomic
        ):  # getattr would wake the modules that are loaded when they are used
            module.write_atomic = counted_write
    script.evaluate_generator = lambda generator, *args: {
        "val_accuracy": generator.fc1.weight.abs().sum().item()
    }
    script.main(script.parse_args(request["flags"]))


def fork(request: dict, rank: int, port: int) -> int:
    """A process that becomes the script, as this rank of a job where there are several."""
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if request["ranks"] > 1:
        os.dup2(os.open(f"{request['counter']}.{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
        job = {
            "RANK": rank,
            "WORLD_SIZE": request["ranks"],
            "LOCAL_RANK": rank,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in job.items()})
    code = 1
    try:
        work(request)
        code = 0
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    for line in sys.stdin:
        request = json.loads(line)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [fork(request, rank, port) for rank in range(request["ranks"])]
        print(json.dumps({"pids": pids}), file=answers)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"statuses": statuses}), file=answers)


if __name__ == "__main__":
    main()
