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
    """What a training loop yields after each step: step counts from 1, losses are still on the device."""

    epoch: int
    step: int
    losses: dict[str, Tensor]


class LossMeter:
    """Sums of an epoch's losses, kept on the device, so that a step does not wait for the host.

    The phases of an epoch may have different losses; each loss is averaged over the steps that had it.
    """

    def __init__(self, runtime: Runtime | None = None):
        self.runtime = runtime
        self.reset()

    def reset(self) -> None:
        """Begin an epoch."""
        # names -> (sums and first bad steps (2, losses), number of steps)
        self.phases: dict[tuple[str, ...], tuple[Tensor, int]] = {}
        self.waiting: list[Step] = []  # steps not yet added to the sums

    def update(self, at: Step) -> None:
        """Add the losses of one step."""
        self.waiting.append(replace(at, losses={name: loss.detach() for name, loss in at.losses.items()}))

    def means(self, epoch: int, unit: str = "epoch") -> dict[str, float]:
        """Mean of each loss so far, over steps and ranks.

        Raises FailedRun, naming epoch and step, if one was not finite.
        """
        means = {}
        for names, (values, steps) in self._reduced().items():
            for name, total, first_bad in zip(names, *values.tolist(), strict=True):
                if first_bad < math.inf:
                    raise FailedRun(f"{name} is not finite at {unit} {epoch + 1}, step {int(first_bad)}")
                means[name] = total / steps
        return means

    def state_dict(self) -> dict:
        """Plain values and tensors, for a checkpoint inside an epoch."""
        phases = self._reduced().items()
        return {"phases": [{"names": list(names), "values": v, "steps": n} for names, (v, n) in phases]}

    def load_state_dict(self, state: dict, device: torch.device) -> None:
        """Restore what state_dict() returned."""
        self.reset()
        for phase in state.get("phases", []):
            self.phases[tuple(phase["names"])] = (phase["values"].to(device), phase["steps"])

    def _reduced(self) -> dict[tuple[str, ...], tuple[Tensor, int]]:
        """The values over all ranks, with the waiting steps added.

        The steps are added one after another, so that the sums do not depend on when this is called.
        """
        for names, run in itertools.groupby(self.waiting, key=lambda at: tuple(at.losses)):
            run = list(run)
            rows = [torch.stack([loss.float() for loss in at.losses.values()]) for at in run]
            losses = torch.stack(rows).double()
            steps = torch.tensor([float(at.step) for at in run], dtype=torch.double).to(losses.device)
            bad = torch.where(losses.isfinite(), math.inf, steps[:, None]).amin(0)
            start = torch.stack([torch.zeros_like(bad), torch.full_like(bad, math.inf)])
            values, count = self.phases.get(names, (start, 0))
            sums = torch.cat([values[:1], losses]).cumsum(0)[-1]
            self.phases[names] = torch.stack([sums, torch.minimum(values[1], bad)]), count + len(run)
        self.waiting = []
        if self.runtime is None or self.runtime.world_size == 1:
            return self.phases
        return {
            names: (torch.stack([self.runtime.mean(v[0]), self.runtime.minimum(v[1])]), n)
            for names, (v, n) in self.phases.items()
        }
