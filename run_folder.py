"""The folder results/TAG of a training stage: what is resumed, saved, logged and drawn there, and when.

The loop that computes lives in the stage scripts as a generator function; `RunFolder.epochs` drives it.
"""

import contextlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from runtime import Runtime
from utils import (
    FailedRun,
    UsageError,
    environment,
    handle_stops,
    locked,
    raise_stopped,
    read_checkpoint,
    rng_state,
    set_rng_state,
    tell,
    to_host,
    write_atomic,
    write_json,
)

ENVIRONMENT = ("commit", "torch", "device")

# Flags that may differ when a run is continued: where and how it runs (what lies at --weight is compared by its hash), and the
# evaluation's.
EVALUATION_FLAGS = ("eval_model", "budget", "ipc", "repeats", "recipe", "epochs_eval", "mix_p")
FREE_FLAGS = {
    *(
        "tag",
        "results_dir",
        "data_dir",
        "weight",
        "epochs",
        "device",
        "amp",
        "channels_last",
        "graphs",
        "compile",
        "save_interval",
        "print_freq",
        "eval_interval",
    ),
    *EVALUATION_FLAGS,
}


class Position(NamedTuple):
    """Where a run stands: `epoch` epochs are complete but for the closing of one whose `step` is its last."""

    epoch: int = 0
    step: int = 0


START = Position()


@dataclass(frozen=True)
class Step:
    """What a training loop yields after each step: its place (step counts from 1) and its losses, still on the device."""

    epoch: int
    step: int
    losses: dict[str, Tensor]


class LossMeter:
    """Sums of an epoch's losses on the device, so that a step need not wait for the host nor add to its work.

    The phases of an epoch may have losses of their own names; each is averaged over the steps that had it.
    """

    def __init__(self, runtime: Runtime | None = None):
        self.runtime = runtime
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.phases: dict[tuple[str, ...], tuple[Tensor, int]] = {}  # names -> (sums and first bad steps (2, losses), number of steps)
        self.waiting: list[Step] = []  # not yet added

    def update(self, at: Step) -> None:
        """Take in one step's losses."""
        self.waiting.append(replace(at, losses={name: loss.detach() for name, loss in at.losses.items()}))

    def means(self, epoch: int, unit: str = "epoch") -> dict[str, float]:
        """Mean of each loss so far, over steps and ranks. Raises FailedRun, naming epoch and step, if one was not finite."""
        means = {}
        for names, (values, steps) in self._reduced().items():
            sums, first_bad = values.tolist()
            for name, step in zip(names, first_bad, strict=True):
                if step < math.inf:
                    raise FailedRun(f"{name} is not finite at {unit} {epoch + 1}, step {int(step)}")
            means |= {name: total / steps for name, total in zip(names, sums, strict=True)}
        return means

    def state_dict(self) -> dict:
        """Plain values and tensors, for a checkpoint inside an epoch."""
        return {"phases": [{"names": list(names), "values": values, "steps": n} for names, (values, n) in self._reduced().items()]}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Go on from state_dict()."""
        self.phases, self.waiting = (
            {tuple(phase["names"]): (phase["values"].to(device), phase["steps"]) for phase in state.get("phases", [])},
            [],
        )

    def _reduced(self) -> dict[tuple[str, ...], tuple[Tensor, int]]:
        """The values over all ranks, what waits added one after another, so that it does not matter when."""
        for names, run in itertools.groupby(self.waiting, key=lambda at: tuple(at.losses)):
            run = list(run)
            losses = torch.stack([torch.stack([loss.float() for loss in at.losses.values()]) for at in run]).double()
            steps = torch.tensor([float(at.step) for at in run], dtype=torch.double).to(losses.device)
            bad = torch.where(losses.isfinite(), math.inf, steps[:, None]).amin(0)
            values, done = self.phases.get(names, (torch.stack([torch.zeros_like(bad), torch.full_like(bad, math.inf)]), 0))
            sums = torch.cat([values[:1], losses]).cumsum(0)[-1]
            self.phases[names] = torch.stack([sums, torch.minimum(values[1], bad)]), done + len(run)
        self.waiting = []
        if self.runtime is None or self.runtime.world_size == 1:
            return self.phases
        reduce = self.runtime
        return {names: (torch.stack([reduce.mean(v[0]), reduce.minimum(v[1])]), n) for names, (v, n) in self.phases.items()}


class RunFolder:
    """results/TAG with args.json, metrics.jsonl, TensorBoard events, outputs/, last.pth and best.pth.

    flags: all of them, by name. inputs: what else a continued run must share with the run in the folder, by the name that an
    error gives it. parts: objects whose state_dict() holds everything that the next step depends on, beside the random
    numbers. header: plain values to store in each checkpoint. Of several ranks the first one writes; all take part.
    What is counted as an epoch may be another `unit`, such as a task; steps_per_epoch then holds a number for each of them. free:
    flags that may differ when the run is continued.
    Raises UsageError, without having written anything, where the folder holds a run with other settings.
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
        self.folder, self.flags, self.parts, self.header, self.runtime = folder, flags, parts, header, runtime
        self.fixed = {name: value for name, value in flags.items() if name not in free} | inputs
        self.evaluation = {name: flags[name] for name in EVALUATION_FLAGS if name in flags}
        self.unit = unit
        self.lengths = [steps_per_epoch] * flags["epochs"] if isinstance(steps_per_epoch, int) else list(steps_per_epoch)
        self.num_epochs = len(self.lengths)
        self.meter = LossMeter(runtime)
        self.position = START
        self.seconds = 0.0  # of training, over all starts
        self._clock: float | None = None  # since when the steps under way are not yet in it
        self.best: dict | None = None  # {"epoch", "name", "value", "evaluation"} of best.pth, on a held-out split only
        self.lines: list[dict] = []
        self.earlier: list[dict] = []  # what args.json said of the starts before this one
        self._stop_signal: int | None = None
        self._stop_at_once = False
        self._tensorboard = None
        self._resume()

    def _resume(self) -> None:
        args_file, last = self.folder / "args.json", self.folder / "last.pth"
        if not args_file.exists():
            if last.exists():
                raise UsageError(f"{self.folder} holds last.pth but no args.json, so it cannot be continued; use another --tag")
            return
        try:
            args = json.loads(args_file.read_text())
            found, self.earlier = dict(args["fixed"]), [*args["earlier"], {name: args[name] for name in ("flags", *ENVIRONMENT)}]
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{args_file}: expected the args.json of a run, found something else; use another --tag") from None
        asked = json.loads(json.dumps(self.fixed))
        for name in {**found, **asked}:
            if found.get(name) != asked.get(name):
                flag = "--" + name.replace("_", "-") if name in self.flags else f"the {name}"
                raise UsageError(
                    f"{self.folder} holds a run with {flag} {_short(found.get(name))}, found {flag} {_short(asked.get(name))}: "
                    "give the same to continue it, or another --tag"
                )
        if last.exists():
            self._load(read_checkpoint(last))

    def _load(self, state: dict) -> None:
        try:
            for part in self.parts:
                part.load_state_dict(state)
            self.position, self.best, self.seconds = Position(**state["position"]), state["best"], state["seconds"]
            self.meter.load_state_dict(state["meter"], self.runtime.device)
            self._load_rng(state)
        except UsageError as error:
            raise UsageError(f"{self.folder / 'last.pth'}: {error}; use another --tag") from None
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{self.folder / 'last.pth'}: not a checkpoint of this run ({reason}); use another --tag") from None
        metrics = self.folder / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
        self.lines = [line for line in lines if line[self.unit] <= self.position.epoch]

    def _load_rng(self, state: dict) -> None:
        """Go on with this rank's random numbers; one that the job did not have then begins its own at the place reached."""
        streams = [state["rng"], *state.get("rng_of_ranks", [])]
        if self.runtime.rank < len(streams):
            set_rng_state(streams[self.runtime.rank], self.runtime.device)
        else:
            torch.manual_seed(self.runtime.own_seed(self.flags["seed"], *self.position))

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        """Hold the folder alone, note this start in args.json and clear what a kill left."""
        self.runtime.barrier()  # every rank has read what lies there
        with contextlib.ExitStack() as held:

            def claim() -> None:
                make_folder(self.folder / "outputs")
                held.enter_context(locked(self.folder))
                start = {"flags": self.flags, "chosen": self.runtime.chosen(), "fixed": self.fixed}
                start |= {**environment(self.runtime.device), "earlier": self.earlier}
                write_json(self.folder / "args.json", start)
                for leftover in (*self.folder.glob(".*.tmp"), *self.folder.glob("outputs/.*.tmp")):
                    leftover.unlink()

            self.runtime.on_main(claim)
            tell(f"steps run on: {self.runtime.describe()}")
            yield

    @property
    def best_path(self) -> Path:
        """The checkpoint to deploy: best.pth where a held-out split chose it, else last.pth."""
        return self.folder / ("best.pth" if self.best else "last.pth")

    def epochs(self, steps: Iterable[Step], print_freq: int, save_interval: int) -> Iterator[tuple[int, dict[str, float]]]:
        """Drive the training loop `steps`; yield (epoch, mean losses) after the last step of each epoch.

        epoch counts from 1. Saves last.pth every save_interval steps (0 = not inside an epoch) and at each epoch's end.
        SIGINT and SIGTERM end the step (with several ranks: the steps up to the next reading), save, and raise Stopped.
        Losses are read every print_freq steps; one that is not finite raises FailedRun and leaves the last good checkpoint.
        """
        if self.position.epoch >= self.num_epochs:
            return
        done = sum(self.lengths[: self.position.epoch]) + self.position.step
        bar = tqdm(total=sum(self.lengths), initial=done, unit="step", disable=None if self.runtime.is_main else True, dynamic_ncols=True)
        with handle_stops(self._on_signal), self._claimed(), bar:
            if self.position.step == self.lengths[self.position.epoch]:  # stopped after the epoch's last step, before its closing
                yield self.position.epoch + 1, self._means()
            self._clock = time.perf_counter()
            for at in steps:
                self.position = Position(at.epoch, at.step)
                self.meter.update(at)
                bar.update()
                ends = at.step == self.lengths[at.epoch]
                reads = ends or at.step % print_freq == 0
                if reads:
                    bar.set_description(f"{self.unit} {at.epoch + 1}/{self.num_epochs}", refresh=False)
                    bar.set_postfix({name: f"{value:.3f}" for name, value in self._means().items()})
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
                    if stop := self._agreed_stop():  # arrived while the epoch was closed, which saved it
                        raise_stopped(stop)

    def _lap(self, goes_on: bool = True) -> None:
        """Add the seconds since the last lap; evaluations lie outside of laps."""
        if self._clock is not None:
            now = time.perf_counter()
            self.seconds, self._clock = self.seconds + now - self._clock, now if goes_on else None

    def _agreed_stop(self) -> int | None:
        """The signal that came to any rank, so that all save the same step."""
        return self.runtime.any_rank(self._stop_signal)

    def close_epoch(self, epoch: int, values: dict[str, float], pictures: Tensor | None, choose_by: str | None) -> None:
        """Write the epoch's line, picture and checkpoints.

        values: what to log. pictures: (C, H, W) in [-1, 1], or None. choose_by: the name in `values` whose highest figure makes
        best.pth; it must come from held-out training images.
        """
        line = {self.unit: epoch, "step": sum(self.lengths[:epoch]), "seconds": round(self.seconds, 1), **values}
        score = values.get(choose_by) if choose_by else None
        comparable = self.best is not None and self.best["evaluation"] == self.evaluation
        better = score is not None and (not comparable or score > self.best["value"])
        if better:
            self.best = {"epoch": epoch, "name": choose_by, "value": score, "evaluation": self.evaluation}
        self.lines.append(line)
        if self.runtime.is_main:
            text = "".join(json.dumps(row) + "\n" for row in self.lines)
            write_atomic(self.folder / "metrics.jsonl", lambda path: path.write_text(text))
            if pictures is not None:
                save_picture(self.folder / "outputs" / f"img_{epoch:04d}.png", pictures)
            self._write_events(line, pictures)
        self.position = Position(epoch, 0)
        self.meter.reset()
        if better:
            self.save("best.pth")
        self.save()
        tqdm.write(f"{self.unit} {epoch}/{self.num_epochs}  " + "  ".join(f"{k} {v:.4f}" for k, v in values.items()))
        sys.stdout.flush()  # a pipe shows it now too

    def save(self, name: str = "last.pth") -> None:
        """Write a checkpoint of this very step, unless its losses or weights are not finite (FailedRun)."""
        self._means()
        self._lap()
        state = dict(self.header)
        for part in self.parts:
            state |= part.state_dict()
        state |= {
            "position": self.position._asdict(),
            "seconds": self.seconds,
            "best": self.best,
            "meter": self.meter.state_dict(),
        }
        state = to_host(state)
        self._check_finite(state)
        state["rng"], *others = self.runtime.gather(rng_state(self.runtime.device))
        if others:
            state["rng_of_ranks"] = others
        if not self.runtime.is_main:
            return
        try:
            write_atomic(self.folder / name, lambda path: torch.save(state, path))
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
            raise FailedRun(f"{self.folder / name}: could not be written ({str(error).splitlines()[0]}); {self._kept()}") from None

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Save, then run a block that takes long and changes nothing: a stop signal ends it at once."""
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
        return f"{last} is the last good checkpoint" if last.exists() else "no checkpoint had been written yet"

    def _check_finite(self, state: dict) -> None:
        for part in ("generator", "discriminator", "gan", "learners"):
            for name, tensor in _tensors(state.get(part) or {}):
                if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                    where = f"{self.unit} {self.position.epoch + 1}, step {self.position.step}"
                    raise FailedRun(f"{part}.{name} is not finite at {where}; {self._kept()}")

    def _write_events(self, line: dict, pictures: Tensor | None) -> None:
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter  # a second to import, so only where it is written

            self._tensorboard = SummaryWriter(str(self.folder), purge_step=line[self.unit])
        for name, value in line.items():
            if name not in (self.unit, "step", "seconds"):
                self._tensorboard.add_scalar(name.replace("_", "/", 1), value, line[self.unit])
        if pictures is not None:
            self._tensorboard.add_image("samples", (pictures.clamp(-1, 1) + 1) / 2, line[self.unit])
        self._tensorboard.flush()


def _tensors(state) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested dicts and lists, by their path."""
    for name, value in state.items() if isinstance(state, dict) else enumerate(state):
        if isinstance(value, Tensor):
            yield str(name), value
        elif isinstance(value, dict | list | tuple):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _tensors(value))


def _short(value) -> str:
    """A value as an error line shows it."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def run_path(results_dir: str, tag: str) -> Path:
    """results_dir/tag; UsageError where the tag is empty or leads out of results_dir."""
    if not tag.strip() or Path(tag).is_absolute() or ".." in Path(tag).parts:
        raise UsageError(f"--tag {tag!r}: expected the name of a folder under {results_dir}")
    return Path(results_dir) / tag


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents; UsageError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}.tmp"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}), expected a folder for the results") from None


def save_picture(path: Path, image: Tensor) -> None:
    """Write one (C, H, W) image in [-1, 1] as a PNG, atomically."""
    array = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    picture = Image.fromarray(np.ascontiguousarray(array.squeeze(2) if array.shape[2] == 1 else array))
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))
