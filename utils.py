"""Seeds, run folder, metric log, checkpoints and command-line errors: what every stage does around its loop."""

import argparse
import contextlib
import copy
import errno
import functools
import hashlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent
AT_END: list[Callable[[], None]] = []  # what a command does once its main has returned
LESS_MEMORY = "a smaller --batch-size needs less; what was saved before is whole"


class UsageError(ValueError):
    """Bad input from the user: one line that names the flag or file, what was found and what was expected."""


class FailedRun(Exception):
    """A run that cannot go on, such as a loss that is not finite; exit code 1."""


class Stopped(Exception):
    """SIGINT or SIGTERM arrived; `exit_code` is 130 or 143."""

    def __init__(self, exit_code: int):
        super().__init__(exit_code)
        self.exit_code = exit_code


def own_rank() -> int:
    """This process's number in the job that torchrun started; 0 alone."""
    return int(os.environ.get("RANK", 0))


def tell(message: str) -> None:
    """Print a line on stderr, once where several processes found the same."""
    if own_rank() == 0:
        print(message, file=sys.stderr)


def raise_stopped(number: int) -> None:
    """Answer a signal at once."""
    raise Stopped(128 + number)


@contextlib.contextmanager
def handle_stops(handler: Callable[[int], None]) -> Iterator[None]:
    """Call handler(number) on SIGINT and SIGTERM during the block, in the main thread; elsewhere change nothing."""
    previous = {}
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda number, frame: handler(number))
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, and whose flags may not be abbreviated."""

    def __init__(self, description: str):
        super().__init__(
            description=description,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str):
        tell(f"{self.prog}: error: {message} (see --help)")
        raise SystemExit(2)


def cli(main: Callable) -> Callable:
    """Turn what a user can cause into one line on stderr and an exit code: bad input 2, a stop 130 or 143."""

    @functools.wraps(main)
    def wrapper(args):
        name = Path(sys.modules[main.__module__].__file__).name
        name = f"{name} (rank {own_rank()})" if own_rank() else name
        try:
            with handle_stops(raise_stopped):
                result = main(args)
            while AT_END:
                AT_END.pop()()
            return result
        except UsageError as error:
            tell(f"{name}: error: {error}")
            raise SystemExit(2) from None
        except FailedRun as error:
            print(f"{name}: {error}", file=sys.stderr)
            raise SystemExit(1) from None
        except torch.OutOfMemoryError as error:
            print(f"{name}: out of memory ({str(error).partition(' GPU ')[0]}); {LESS_MEMORY}", file=sys.stderr)
            raise SystemExit(1) from None
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # how the CPU says it
                raise
            print(f"{name}: out of memory ({str(error).partition('. Error code')[0].rpartition('] ')[2]}); {LESS_MEMORY}", file=sys.stderr)
            raise SystemExit(1) from None
        except OSError as error:
            if error.filename is None:
                raise
            print(f"{name}: error: {error.filename}: {error.strerror}; what was saved before is whole", file=sys.stderr)
            raise SystemExit(2 if error.errno in (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EROFS) else 1) from None
        except (Stopped, KeyboardInterrupt) as stop:
            tell(f"{name}: stopped; the same command continues")
            raise SystemExit(getattr(stop, "exit_code", 130)) from None

    return wrapper


def number(kind: type, low: float, high: float = math.inf, *, exclusive: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite `kind` in [low, high], or in (low, high] with `exclusive`."""
    bounds = f"{'>' if exclusive else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
    expected = f"{'a whole number' if kind is int else 'a number'} {bounds}"
    high = min(high, 2**31 - 1) if kind is int else high  # what torch takes for a size

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {expected}") from None
        if not (low < value < math.inf or (value == low and not exclusive)) or value > high:
            raise argparse.ArgumentTypeError(f"found {text}, expected {expected}")
        return value

    return parse


positive_int = number(int, 1)
two_or_more = number(int, 2)
count = number(int, 0)
positive = number(float, 0, exclusive=True)
nonnegative = number(float, 0)
probability = number(float, 0, 1)
probability_or_off = number(float, -1, 1)
decay = number(float, 0, 0.999999)
jpeg_quality = number(int, 1, 95)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a tuple, the same on every machine: derive_seed(seed, "order", epoch)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextlib.contextmanager
def seeded(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Run the block on the random numbers of derive_seed(*parts), and put the surrounding stream back after."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(derive_seed(*parts))
        if devices:  # torch.manual_seed would seed every CUDA device, forked or not
            torch.cuda.default_generators[device.index or 0].manual_seed(derive_seed(*parts))
        yield


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """The states of the random-number streams that a step on `device` draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_rng_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Put back what rng_state gave. A stream saved on another kind of device keeps its present state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` from the host on `device`; CUDA fetches them from pinned memory, so that the host does not wait for its work under way."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def to_host(state: Any, chunk_bytes: int = 2**26) -> Any:
    """Nested dicts, lists and tuples with their CUDA tensors copied to the CPU; what lies there already is left as it is.

    The tensors of a type are copied together, `chunk_bytes` or a larger tensor at a time, so that the host waits a few times in all.
    """
    found = {id(tensor): tensor for tensor in _cuda_tensors(state)}
    copies: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in found.values()):
        chunk, size = [], 0
        for tensor in [*(tensor for tensor in found.values() if tensor.dtype == dtype), None]:
            if chunk and (tensor is None or size + tensor.nbytes > chunk_bytes):
                flat = torch.cat([part.detach().reshape(-1) for part in chunk]).cpu()
                for part, values in zip(chunk, flat.split([part.numel() for part in chunk]), strict=True):
                    copies[id(part)] = values.clone().view(part.shape)
                chunk, size = [], 0
            if tensor is not None:
                chunk, size = [*chunk, tensor], size + tensor.nbytes

    def copied(value: Any) -> Any:
        if isinstance(value, dict):
            fresh = copy.copy(value)  # with the versions that a module's state_dict carries beside its entries
            fresh.update((name, copied(inner)) for name, inner in value.items())
            return fresh
        if isinstance(value, list | tuple):
            return type(value)(copied(inner) for inner in value)
        return copies.get(id(value), value) if isinstance(value, Tensor) else value

    return copied(state) if found else state


def _cuda_tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        if state.is_cuda:
            yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _cuda_tensors(value)


@contextlib.contextmanager
def eval_mode(module: nn.Module) -> Iterator[nn.Module]:
    """Put `module` and its children in eval mode for the block; each gets its own mode back."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield module
    finally:
        for child, training in modes:
            child.training = training


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[nn.Module]:
    """Build graphs through `module` without gradients for its parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield module
    finally:
        for p in parameters:
            p.requires_grad_(True)


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, steps: Tensor, ema: float) -> None:
    """Move the exponential average of a module's weights by one step and count it in steps (); buffers are copied.

    Its decay is reached from below, since the first steps are not worth keeping: step t uses min(ema, (1 + t) / (10 + t)).
    """
    share = 1 - ((1 + steps) / (10 + steps)).clamp(max=ema)
    steps += 1
    for target, source in zip(average.parameters(), module.parameters(), strict=True):
        target.lerp_(source, share)
    for target, source in zip(average.buffers(), module.buffers(), strict=True):
        target.copy_(source)


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call write(temporary path), then rename it to `path`: readers see the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process. Raises UsageError where another one holds it; a process that dies lets go."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(f"{folder}: another process is writing there, expected this command to be alone") from None
    finally:
        os.close(handle)


def write_tensors(path: Path, write: Callable[[Path], None]) -> None:
    """write_atomic for libraries that report a full disk as an error of their own, here a FailedRun."""
    try:
        write_atomic(path, write)
    except (RuntimeError, SafetensorError) as error:
        raise FailedRun(f"{path}: could not be written ({str(error).splitlines()[0]})") from None


def write_json(path: Path, value) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, lambda temporary: temporary.write_text(json.dumps(value, indent=1) + "\n"))


def file_hash(path: str | Path, algorithm: str = "sha256") -> str:
    """Hex digest of a file."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_plain(path: str | Path, expected: str, allowed: Sequence = ()) -> object:
    """Read a file of torch.save that holds tensors and plain values. Other pickled code is refused, never executed.

    expected: what the file should hold, for the error's line. allowed: types, or (type, full name), that may be there as well.
    Raises UsageError where the file is missing, a folder, truncated, or holds anything else.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder, expected {expected}")
    if not path.exists():
        raise UsageError(f"{path}: no such file, expected {expected}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(allowed)):
            warnings.simplefilter("ignore")  # torch's own doubts about a foreign file; ours is the line below
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes fail in any way; nothing of them has been run
        code = re.search(r"GLOBAL (\S+)", str(error))
        found = f"pickled code ({code[1]}), not executed" if code else f"{path.stat().st_size} bytes that are none, or truncated"
        raise UsageError(f"{path}: expected {expected} of tensors and plain values, found {found}") from None


def read_checkpoint(path: str | Path) -> dict:
    """read_plain of a dict. Raises UsageError where the file is anything else."""
    if Path(path).is_dir():
        raise UsageError(f"{path}: is a folder, expected a checkpoint file such as {Path(path) / 'last.pth'}")
    state = read_plain(path, "a checkpoint")
    if not isinstance(state, dict):
        raise UsageError(f"{path}: holds a {type(state).__name__}, expected a checkpoint (a dict)")
    return state


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises UsageError where it is missing, damaged, or something else."""
    path = Path(path)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise UsageError(f"{path}: {found}, expected a generator in safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise UsageError(f"{path}: expected safetensors, found {path.stat().st_size} bytes that are none, or truncated ({error})") from None


def commit() -> str:
    """The commit of this code, with -dirty and a hash of the changes where tracked files differ; "unknown" outside a checkout."""

    def git(*command: str) -> str:
        return subprocess.run(("git", "-C", str(ROOT), *command), capture_output=True, text=True, check=True).stdout.strip()

    try:
        changes = git("diff", "HEAD")
        return git("rev-parse", "HEAD") + (f"-dirty-{hashlib.sha256(changes.encode()).hexdigest()[:8]}" if changes else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe_device(device: torch.device) -> str:
    """The GPU's name, or "cpu" with the number of threads."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"


def environment(device: torch.device) -> dict[str, str]:
    """What a result depends on besides its flags: commit, torch, device."""
    return {"commit": commit(), "torch": torch.__version__, "device": describe_device(device)}
