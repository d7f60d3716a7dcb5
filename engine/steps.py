"""What a training loop yields: positions, steps, and the means of their losses."""

import itertools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from engine.runtime import Runtime
from utils import FailedRun


class Position(NamedTuple):
    """Position of a run: `epoch` complete epochs and `step` steps of the next one.

    An epoch counts as complete after close_epoch: until then, `step` is the number of its last step.
    """

    epoch: int = 0
    step: int = 0


START = Position()


@dataclass(frozen=True)
class Step:
    """What a training loop yields after each step: its place (step counts from 1) and its losses, still on
    the device."""

    epoch: int
    step: int
    losses: dict[str, Tensor]


class LossMeter:
    """Sums of an epoch's losses, kept on the device, so that a step neither waits for the host nor does
    additional work.

    The phases of an epoch may have different losses; each loss is averaged over the steps that had it.
    """

    def __init__(self, runtime: Runtime | None = None):
        self.runtime = runtime
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        self.phases: dict[
            tuple[str, ...], tuple[Tensor, int]
        ] = {}  # names -> (sums and first bad steps (2, losses), number of steps)
        self.waiting: list[Step] = []  # steps not yet added to the sums

    def update(self, at: Step) -> None:
        """Add the losses of one step."""
        self.waiting.append(replace(at, losses={name: loss.detach() for name, loss in at.losses.items()}))

    def means(self, epoch: int, unit: str = "epoch") -> dict[str, float]:
        """Mean of each loss so far, over steps and ranks. Raises FailedRun, naming epoch and step, if one was
        not finite."""
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
        return {
            "phases": [
                {"names": list(names), "values": values, "steps": n}
                for names, (values, n) in self._reduced().items()
            ]
        }

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Restore what state_dict() returned."""
        self.phases, self.waiting = (
            {
                tuple(phase["names"]): (phase["values"].to(device), phase["steps"])
                for phase in state.get("phases", [])
            },
            [],
        )

    def _reduced(self) -> dict[tuple[str, ...], tuple[Tensor, int]]:
        """The values over all ranks, with the waiting steps added.

        The steps are added one after another, so that the sums do not depend on when this is called.
        """
        for names, run in itertools.groupby(self.waiting, key=lambda at: tuple(at.losses)):
            run = list(run)
            losses = torch.stack(
                [torch.stack([loss.float() for loss in at.losses.values()]) for at in run]
            ).double()
            steps = torch.tensor([float(at.step) for at in run], dtype=torch.double).to(losses.device)
            bad = torch.where(losses.isfinite(), math.inf, steps[:, None]).amin(0)
            values, done = self.phases.get(
                names, (torch.stack([torch.zeros_like(bad), torch.full_like(bad, math.inf)]), 0)
            )
            sums = torch.cat([values[:1], losses]).cumsum(0)[-1]
            self.phases[names] = torch.stack([sums, torch.minimum(values[1], bad)]), done + len(run)
        self.waiting = []
        if self.runtime is None or self.runtime.world_size == 1:
            return self.phases
        reduce = self.runtime
        return {
            names: (torch.stack([reduce.mean(v[0]), reduce.minimum(v[1])]), n)
            for names, (v, n) in self.phases.items()
        }
