"""Errors, stop signals and command line of a run: what every script needs around its loop."""

import argparse
import contextlib
import errno
import functools
import math
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

AT_END: list[Callable[[], None]] = []  # called once the main of a command has returned
SIZES = ("batch_size", "gan_batch_size", "match_batch", "width")  # flags that set the memory of a step
OUT_OF_MEMORY = ("can't allocate memory", "Storage size calculation overflowed")  # torch's words on the CPU
# errors that a wrong path causes
BAD_INPUT = (
    *(errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EROFS),
    *(errno.ENOENT, errno.EISDIR, errno.ENAMETOOLONG),
)


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
    """The rank of this process in the job that torchrun started; 0 without one."""
    return int(os.environ.get("RANK", 0))


def tell(message: str) -> None:
    """Print a line on stderr, on the first rank only."""
    if own_rank() == 0:
        print(message, file=sys.stderr)


def raise_stopped(number: int) -> None:
    """Raise Stopped for the signal `number`."""
    raise Stopped(128 + number)


@contextlib.contextmanager
def handle_stops(handler: Callable[[int], None]) -> Iterator[None]:
    """Call handler(number) on SIGINT and SIGTERM during the block, in the main thread alone."""
    previous = {}
    with contextlib.suppress(ValueError):  # signals belong to the main thread
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, lambda number, frame: handler(number))
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)


@contextlib.contextmanager
def out_of_memory_hint(flag: str) -> Iterator[None]:
    """Name `flag` as the cause if memory runs out in the block."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch's and numpy's
        error.flag = getattr(error, "flag", flag)
        raise


def lack_of_memory(error: Exception, args: argparse.Namespace) -> str | None:
    """Describe an error by which memory ran out, with the flags that would need less; None for others."""
    if isinstance(error, torch.OutOfMemoryError):
        reason = str(error).partition(" GPU ")[0]
    elif isinstance(error, MemoryError) or any(part in str(error) for part in OUT_OF_MEMORY):
        reason = str(error).partition(". Error code")[0].rpartition("] ")[2] or "the system has no more"
        reason = reason.splitlines()[0]
    else:
        return None
    sizes = ["--" + name.replace("_", "-") for name in SIZES if hasattr(args, name)]
    flags = getattr(error, "flag", None) or " or ".join(sizes)
    hint = f"a smaller {flags} needs less; " if flags else ""
    return f"out of memory ({reason}); {hint}what was saved before is whole"


class Effect(NamedTuple):
    """Flags, by their names in the parsed arguments, that have an effect only if applies(arguments);
    `without` says what is missing."""

    flags: Sequence[str]
    applies: Callable[[argparse.Namespace], object]
    without: str


class DefaultsInHelp(argparse.ArgumentDefaultsHelpFormatter):
    """A help formatter that adds the default to each text, except where there is none or the text names it
    itself. Flags stand beside their texts, and a number is called N."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34)
        self._action_max_length = 16  # room for the names of sub-commands, whose indent argparse forgets

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return (
            "N"
            if action.type not in (None, device_name)
            else super()._get_default_metavar_for_optional(action)
        )

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, False) or "(default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, and whose flags may not be abbreviated.

    A flag that is given and has no effect by one of `effects` gets a warning.
    """

    def __init__(self, description: str = "", effects: Sequence[Effect] = (), **kwargs):
        self.effects = effects
        super().__init__(
            description=description,
            formatter_class=DefaultsInHelp,
            allow_abbrev=False,
            **kwargs,
        )

    def set_defaults_by(self, flag: str, defaults: dict[str, dict], argv: list[str] | None) -> None:
        """Set the defaults of other flags to those that `defaults` has for the value of `flag` in `argv`
        (None = sys.argv)."""
        chooser = Parser("")
        chooser.prog = self.prog
        chooser.add_argument(flag, choices=defaults, dest="chosen", default=next(iter(defaults)))
        argv = [word for word in (sys.argv[1:] if argv is None else argv) if word not in ("-h", "--help")]
        self.set_defaults(**defaults[chooser.parse_known_args(argv)[0].chosen])

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse `args` (None = sys.argv), and warn of flags that are given and have no effect."""
        parsed, unknown = super().parse_known_args(args, namespace)
        if self.effects and not unknown:
            unset = object()
            given, _ = super().parse_known_args(
                args, argparse.Namespace(**dict.fromkeys(vars(parsed), unset))
            )
            for effect in self.effects:
                names = [
                    "--" + name.replace("_", "-")
                    for name in effect.flags
                    if getattr(given, name, unset) is not unset
                ]
                if names and not effect.applies(parsed):
                    tell(f"warning: {', '.join(names)}: no effect {effect.without}")
        return parsed, unknown

    def error(self, message: str):
        tell(f"{self.prog}: error: {message} (see --help)")
        raise SystemExit(2)


def cli(main: Callable) -> Callable:
    """Turn errors that a user can cause into one line on stderr and an exit code.

    Bad input exits with 2, a failed run or a lack of memory with 1, and a stop with 130 (SIGINT) or 143
    (SIGTERM).
    """

    @functools.wraps(main)
    def wrapper(args):
        name = Path(sys.modules[main.__module__].__file__).name
        name = f"{name} (rank {own_rank()})" if own_rank() else name
        with contextlib.suppress(AttributeError):  # for names that the terminal cannot show
            sys.stdout.reconfigure(errors="backslashreplace")
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
        except (RuntimeError, MemoryError) as error:
            message = lack_of_memory(error, args)
            if message is None:
                raise
            print(f"{name}: {message}", file=sys.stderr)
            raise SystemExit(1) from None
        except OSError as error:
            if error.filename is None:
                raise
            reason = f"{error.filename}: {error.strerror}; what was saved before is whole"
            print(f"{name}: error: {reason}", file=sys.stderr)
            raise SystemExit(2 if error.errno in BAD_INPUT else 1) from None
        except (Stopped, KeyboardInterrupt) as stop:
            tell(f"{name}: stopped; the same command continues")
            raise SystemExit(getattr(stop, "exit_code", 130)) from None

    return wrapper


def number(
    kind: type, low: float, high: float = math.inf, *, exclusive: bool = False
) -> Callable[[str], float]:
    """An argparse type: a finite `kind` in [low, high], or in (low, high] with `exclusive`.

    Whole numbers without `high` may have at most 2^31 - 1, which is what torch takes for a size; the message
    names this limit where it is exceeded.
    """
    least = f"{'a whole number' if kind is int else 'a number'} {'>' if exclusive else '>='} {low:g}"
    largest = 2**31 - 1 if kind is int and high == math.inf else high

    def parse(text: str) -> float:
        try:
            value = kind(text)
            shown = text
        except ValueError:
            value = math.nan
            shown = repr(text)
        if (low < value < math.inf or (value == low and not exclusive)) and value <= largest:
            return value
        most = f" and <= {largest}" if high < math.inf or largest < value < math.inf else ""
        raise argparse.ArgumentTypeError(f"found {shown}, expected {least}{most}")

    return parse


positive_int = number(int, 1)
two_or_more = number(int, 2)
count = number(int, 0)
seed_number = number(int, 0, 2**64 - 1)
positive = number(float, 0, exclusive=True)
nonnegative = number(float, 0)
probability = number(float, 0, 1)
probability_or_off = number(float, -1, 1)
decay = number(float, 0, 0.999999)
jpeg_quality = number(int, 1, 95)


def device_name(text: str) -> str:
    """An argparse type: auto, cpu, cuda or cuda:N."""
    kind, _, index = text.partition(":")
    if text in ("auto", "cpu", "cuda") or (kind == "cuda" and index.isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"found {text!r}, expected auto, cpu, cuda or cuda:N")
