"""The folder results/TAG of a training stage: what is resumed, saved, logged and drawn there, and when.

The training loop is a generator function in the stage script; `RunFolder.epochs` drives it.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from engine.args_file import EVALUATION_FLAGS, FREE_FLAGS, ArgsFile
from engine.files import locked, make_folder, read_checkpoint, save_picture, write_atomic
from engine.progress import Progress
from engine.runtime import Runtime
from engine.seeds import rng_state, set_rng_state
from engine.steps import START, LossMeter, Position, Step
from engine.tensors import to_host
from utils import FailedRun, UsageError, count, handle_stops, positive_int, raise_stopped, tell


class RunFolder:
    """results/TAG with args.json, metrics.jsonl, TensorBoard events, outputs/, last.pth and best.pth.

    flags: all flags, name -> value. inputs: other values that must be the same when the run is continued;
    error messages use their names. parts: objects whose state_dict() holds everything that the next step
    depends on, except the state of the random numbers. header: plain values to store in each checkpoint.
    steps_per_epoch: one number, or one for each epoch. unit: what is counted as an epoch, such as "task".
    free: flags that may differ when the run is continued. With several ranks all take part, and the first one
    writes. Raises UsageError, before anything is written, if the folder holds a run with other settings.
    """

    def __init__(
        self,
        folder: Path,
        flags: dict,
        inputs: dict,
        parts: list,
        header: dict,
        runtime: Runtime,
        steps_per_epoch: int | Sequence[int],
        unit: str = "epoch",
        free: Collection[str] = FREE_FLAGS,
    ):
        self.folder = folder
        self.flags = flags
        self.parts = parts
        self.header = header
        self.runtime = runtime
        self.args = ArgsFile(folder, header["stage"], flags, inputs, free)
        self.lines: list[dict] = []  # the metrics of each epoch so far, as in metrics.jsonl
        self._tensorboard = None
        self.evaluation = {name: flags[name] for name in EVALUATION_FLAGS if name in flags}
        self.unit = unit
        self.lengths = (
            [steps_per_epoch] * flags["epochs"] if isinstance(steps_per_epoch, int) else list(steps_per_epoch)
        )
        self.num_epochs = len(self.lengths)
        self.meter = LossMeter(runtime)
        self.position = START
        self.seconds = 0.0  # of training, over all starts
        # start of the time that is not yet added to `seconds`; None outside of training
        self._clock: float | None = None
        # {"epoch", "name", "value", "evaluation"} of best.pth, on a held-out split only
        self.best: dict | None = None
        self._stop_signal: int | None = None
        self._stop_at_once = False
        if (folder / "last.pth").exists():
            self._load(read_checkpoint(folder / "last.pth"))

    def _load(self, state: dict) -> None:
        try:
            for part in self.parts:
                part.load_state_dict(state)
            self.position = Position(**state["position"])
            self.best = state["best"]
            self.seconds = state["seconds"]
            self.meter.load_state_dict(state["meter"], self.runtime.device)
            load_rng(state, self.runtime, self.runtime.own_seed(self.flags["seed"], *self.position))
        except UsageError as error:
            raise UsageError(f"{self.folder / 'last.pth'}: {error}; use another --tag") from None
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(
                f"{self.folder / 'last.pth'}: not a checkpoint of this run ({reason}); use another --tag"
            ) from None
        path = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self.lines = [line for line in lines if line[self.unit] <= self.position.epoch]

    @property
    def best_path(self) -> Path:
        """The checkpoint to deploy: best.pth where a held-out split chose it, else last.pth."""
        return self.folder / ("best.pth" if self.best else "last.pth")

    def epochs(
        self, steps: Iterable[Step], print_freq: int, save_interval: int, first_lines: Sequence[str] = ()
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Drive the training loop `steps`; yield (epoch, mean losses) after the last step of each epoch.

        epoch counts from 1. last.pth is saved every save_interval steps (0 = not inside an epoch) and at the
        end of each epoch. After SIGINT or SIGTERM the current step is finished (with several ranks: the steps
        up to the next reading of the losses), last.pth is saved and Stopped is raised. The losses are read
        every print_freq steps. Raises FailedRun if one is not finite, and keeps the last good checkpoint.
        first_lines: data and networks of the run, printed on stderr before its first step.
        """
        if self.position.epoch >= self.num_epochs:
            if self.position.epoch > self.num_epochs:
                tell(
                    f"warning: {self.folder} has {self.position.epoch} {self.unit}s, found "
                    f"{self.num_epochs}: nothing is left to do"
                )
            return
        done = sum(self.lengths[: self.position.epoch]) + self.position.step
        total = sum(self.lengths)
        steps_line = f"steps: {total:,} in all, {self.num_epochs:,} {self.unit}s"
        if done:
            steps_line += f"; {done:,} done"
        lines = [*first_lines, steps_line, f"steps run on: {self.runtime.describe()}"]
        with (
            handle_stops(self._on_signal),
            claimed(self.folder, self.args, self.runtime, lines),
            Progress(total, done, hidden=not self.runtime.is_main) as bar,
        ):
            # stopped after the epoch's last step, before close_epoch
            if self.position.step == self.lengths[self.position.epoch]:
                yield self.position.epoch + 1, self._means()
            self._clock = time.perf_counter()
            for at in steps:
                self.position = Position(at.epoch, at.step)
                self.meter.update(at)
                bar.update()
                ends = at.step == self.lengths[at.epoch]
                reads = ends or at.step % print_freq == 0
                if reads:
                    bar.read(f"{self.unit} {at.epoch + 1}/{self.num_epochs}", self._means())
                stop = self._agreed_stop() if reads or self.runtime.world_size == 1 else None
                if stop or (save_interval and at.step % save_interval == 0 and not ends):
                    self.save()
                if stop:
                    raise_stopped(stop)
                if ends:
                    means = self._means()
                    self._lap(goes_on=False)
                    yield at.epoch + 1, means
                    self._clock = time.perf_counter()
                    if stop := self._agreed_stop():  # arrived during close_epoch, which has saved the epoch
                        raise_stopped(stop)

    def _lap(self, goes_on: bool = True) -> None:
        """Add the time since the last lap to `seconds`. Evaluations are outside of laps."""
        if self._clock is not None:
            now = time.perf_counter()
            self.seconds += now - self._clock
            self._clock = now if goes_on else None

    def _agreed_stop(self) -> int | None:
        """The stop signal that any rank received, or None; the same on all ranks, so that they save the same
        step."""
        return self.runtime.any_rank(self._stop_signal)

    def close_epoch(
        self, epoch: int, values: dict[str, float], pictures: Tensor | None, choose_by: str | None
    ) -> None:
        """Write the epoch's line, picture and checkpoints.

        values: what to log. pictures: (C, H, W) in [-1, 1], or None. choose_by: the name in `values` whose
        highest value chooses best.pth; it must come from held-out training images.
        """
        self._parts(epoch - 1, self.lengths[epoch - 1])  # they are checked before anything is written
        line = {
            self.unit: epoch,
            "step": sum(self.lengths[:epoch]),
            "seconds": round(self.seconds, 1),
            **values,
        }
        score = values.get(choose_by) if choose_by else None
        comparable = self.best is not None and self.best["evaluation"] == self.evaluation
        better = score is not None and (not comparable or score > self.best["value"])
        if better:
            self.best = {"epoch": epoch, "name": choose_by, "value": score, "evaluation": self.evaluation}
        self.lines.append(line)
        if self.runtime.is_main:
            self._write_log(line, pictures)
        self.position = Position(epoch, 0)
        self.meter.reset()
        if better:
            self.save("best.pth")
        self.save()
        tqdm.write(
            f"{self.unit} {epoch}/{self.num_epochs}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items())
        )
        sys.stdout.flush()  # so that a pipe shows it at once too

    def _write_log(self, line: dict, pictures: Tensor | None) -> None:
        """Write metrics.jsonl, and the picture and TensorBoard events of the last `line`."""
        number = line[self.unit]
        text = "".join(json.dumps(row) + "\n" for row in self.lines)
        write_atomic(self.folder / "metrics.jsonl", lambda path: path.write_text(text))
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._tensorboard = SummaryWriter(str(self.folder), purge_step=number)
        for name, value in line.items():
            if name not in (self.unit, "step", "seconds"):
                self._tensorboard.add_scalar(name.replace("_", "/", 1), value, number)
        if pictures is not None:
            save_picture(self.folder / "outputs" / f"img_{number:04d}.png", pictures)
            self._tensorboard.add_image("samples", (pictures.clamp(-1, 1) + 1) / 2, number)
        self._tensorboard.flush()

    def save(self, name: str = "last.pth") -> None:
        """Write a checkpoint of the current step. Raises FailedRun if a loss or weight is not finite or the
        disk is full."""
        self._means()
        self._lap()
        state = {
            **self.header,
            **self._parts(*self.position),
            "position": self.position._asdict(),
            "seconds": self.seconds,
            "best": self.best,
            "meter": to_host(self.meter.state_dict()),
        }
        state["rng"], *others = self.runtime.gather(rng_state(self.runtime.device))
        if others:
            state["rng_of_ranks"] = others
        if not self.runtime.is_main:
            return
        try:
            write_atomic(self.folder / name, lambda path: torch.save(state, path))
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            raise FailedRun(
                f"{self.folder / name}: could not be written ({str(error).splitlines()[0]}); {self._kept()}"
            ) from None

    def _parts(self, epoch: int, step: int) -> dict:
        """The states of all parts on the CPU. Raises FailedRun if a tensor in them is not finite."""
        state = to_host({name: value for part in self.parts for name, value in part.state_dict().items()})
        for path, tensor in _tensors(state):
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                at = f"{self.unit} {epoch + 1}, step {step}"
                raise FailedRun(f"{path} is not finite at {at}; {self._kept()}")
        return state

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Save, then run a long block that changes no state, such as an evaluation; a stop signal ends it at
        once."""
        self.save()
        self._stop_at_once = True
        try:
            if self._stop_signal:
                raise_stopped(self._stop_signal)
            yield
        finally:
            self._stop_at_once = False

    def _on_signal(self, number: int) -> None:
        self._stop_signal = number
        if self._stop_at_once:
            raise_stopped(number)

    def _means(self) -> dict[str, float]:
        try:
            return self.meter.means(self.position.epoch, self.unit)
        except FailedRun as error:
            raise FailedRun(f"{error}; {self._kept()}") from None

    def _kept(self) -> str:
        last = self.folder / "last.pth"
        return (
            f"{last} is the last good checkpoint" if last.exists() else "no checkpoint had been written yet"
        )


@contextlib.contextmanager
def claimed(folder: Path, args: ArgsFile, runtime: Runtime, lines: Sequence[str]) -> Iterator[None]:
    """Lock `folder`, record this start in args.json, delete the temporary files of killed processes, and
    print `lines` on stderr.

    Raises UsageError if another process holds the folder.
    """
    runtime.barrier()  # wait until every rank has read the folder
    with contextlib.ExitStack() as held:

        def claim() -> None:
            make_folder(folder / "outputs")
            held.enter_context(locked(folder))
            args.write(runtime)
            for leftover in (*folder.glob(".*.tmp"), *folder.glob("outputs/.*.tmp")):
                leftover.unlink()

        runtime.on_main(claim)
        for line in lines:
            tell(line)
        yield


def add_run_flags(parser: argparse.ArgumentParser, tag: str) -> None:
    """Declare the flags of a run folder. tag: default of --tag."""
    add = parser.add_argument
    add("--tag", default=tag, help="name of the folder under --results-dir")
    add("--results-dir", default="results", help="where results go")
    add(
        "--save-interval",
        type=count,
        default=250,
        help="steps between checkpoints inside an epoch (stage 4: task); 0 = only at its end",
    )
    add("--print-freq", type=positive_int, default=50, help="steps between readings of the losses")


def load_rng(state: dict, runtime: Runtime, seed: int) -> None:
    """Restore this rank's random-number state; a rank that the saved job did not have is seeded with
    `seed`."""
    streams = [state["rng"], *state.get("rng_of_ranks", [])]
    if runtime.rank < len(streams):
        set_rng_state(streams[runtime.rank], runtime.device)
    else:
        torch.manual_seed(seed)


def _tensors(state) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists, by their path."""
    for name, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, dict | list | tuple):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors(value))
