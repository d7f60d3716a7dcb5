"""The methods of continual learning: the loss of a step, the memory that it needs, and its own flags.

A new method is a loss and a row of METHODS; continual.py makes its command line from the row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from losses import distillation_loss, masked_cross_entropy
from replay.learner import Batch, Learner, TaskInfo, joined
from utils import decay, nonnegative, probability


def er_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], task: TaskInfo
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the current and the replayed batch, joined into one: experience replay (Chaudhry et
    al. 2019, arXiv:1902.10486)."""
    batch = joined([current, *replays])
    logits = learner(batch)
    return F.cross_entropy(logits, batch.y), logits[: len(current.y)]


def der_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], task: TaskInfo
) -> tuple[Tensor, Tensor]:
    """CE(current) + alpha * MSE(logits, stored logits) + beta * CE on a second draw.

    DER++ (Buzzega et al. 2020, arXiv:2004.07211, Eq. 6).
    """
    logits = learner(current)
    loss = F.cross_entropy(logits, current.y)
    if replays:
        first, second = replays
        loss = loss + task.flags.alpha * F.mse_loss(learner(first), first.logits[:, learner.number])
        loss = loss + task.flags.beta * F.cross_entropy(learner(second), second.y)
    return loss, logits


def ace_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], task: TaskInfo
) -> tuple[Tensor, Tensor]:
    """CE(current) + CE(replay), the first among some classes only: ER-ACE (Caccia et al. 2022,
    arXiv:2104.05025).

    CE(current) is among the classes of the batch and those not seen yet, as in mammoth; in the paper it is
    among the classes of the batch alone. Replay begins with the first task, as in the paper; in mammoth it
    begins with the second.
    """
    logits = learner(current)
    present = torch.zeros_like(task.unseen).scatter(0, current.y, True)
    loss = masked_cross_entropy(logits, current.y, present | task.unseen)
    for replay in replays:
        loss = loss + F.cross_entropy(learner(replay), replay.y)
    return loss, logits


def cls_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], task: TaskInfo
) -> tuple[Tensor, Tensor]:
    """Loss of ER + consistency * MSE(logits, logits of an averaged copy): CLS-ER (Arani et al. 2022,
    arXiv:2201.12604).

    The second term is on the replayed batch. For each image, it takes the copy that gives its label the
    higher probability.
    """
    loss, logits = er_loss(learner, current, replays, task)
    for replay in replays:
        with torch.no_grad():
            plastic, stable = (learner(replay, average) for average in learner.averages)
        surer = (x.softmax(1).gather(1, replay.y[:, None]) for x in (stable, plastic))  # (B, 1) each
        target = torch.where(torch.gt(*surer), stable, plastic)
        loss = loss + task.flags.consistency * F.mse_loss(learner(replay), target)
    return loss, logits


def generative_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], task: TaskInfo
) -> tuple[Tensor, Tensor]:
    """r * CE(current) + (1 - r) * loss on generated images of old classes, with r = task.new_share.

    The loss on generated images is (1 - d) * CE + d * distillation from the network of the last task at
    temperature 2, with d = --distill-weight. With d = 1 this is deep generative replay (Shin et al. 2017,
    arXiv:1705.08690) with the distillation of van de Ven & Tolias 2018 (arXiv:1809.10635), with one
    difference: they set the last network's probabilities of classes that it had not met to 0, and here these
    probabilities stay as they are.
    """
    logits = learner(current)
    loss = F.cross_entropy(logits, current.y)
    distill = task.flags.distill_weight
    for replay in replays:
        replay_logits = learner(replay)
        replay_loss = (1 - distill) * F.cross_entropy(replay_logits, replay.y)
        if distill:
            with torch.no_grad():
                target = learner(replay, learner.previous)
            replay_loss = replay_loss + distill * distillation_loss(replay_logits, target)
        loss = task.new_share * loss + (1 - task.new_share) * replay_loss
    return loss, logits


class Flag(NamedTuple):
    """A number that the user may set for a method; the loss reads it as task.flags.NAME."""

    default: float
    help: str
    type: Callable[[str], float] = nonnegative


@dataclass(frozen=True)
class Method:
    """A row of the table of methods. flags: those that no other method has, by name."""

    summary: str
    loss: Callable[[Learner, Batch, Sequence[Batch], TaskInfo], tuple[Tensor, Tensor]] = er_loss
    memory: str | None = "buffer"  # or "generator", or None
    replay_batches: int = 1  # number of batches from memory per step
    keeps_logits: bool = False
    averaged: bool = False  # two averaged copies of each network, which count as memory
    distils: bool = False  # the loss reads the network of the last task, learner.previous
    balanced: bool = False  # the buffer holds an equal share of each class
    retrains: bool = False  # networks learn at the end of each task, from scratch and from memory alone
    condenses: bool = False  # the buffer holds condensed images of each task in the place of real ones
    carries: bool = False  # one generator is trained on from task to task; else there is one for each task
    at_once: bool = False  # all tasks are learnt as one
    unlimited: bool = False  # the buffer keeps every image
    takes_loss: bool = False  # --replay-loss replaces the loss by that of one of replay_losses()
    flags: Mapping[str, Flag] = field(default_factory=dict)


METHODS = {
    "finetune": Method("plain training on one task after the other", memory=None),
    "joint": Method("all tasks at once, the upper bound", memory=None, at_once=True),
    "unlimited": Method("experience replay from all earlier images, a control", unlimited=True),
    "er": Method("experience replay from a buffer of real images"),
    "der++": Method(
        "dark experience replay: the buffer stores logits, too",
        der_loss,
        replay_batches=2,
        keeps_logits=True,
        flags={
            "alpha": Flag(0.5, "weight of the distance to the stored logits"),
            "beta": Flag(0.5, "weight of the cross-entropy on the second batch from memory"),
        },
    ),
    "er-ace": Method("experience replay with an asymmetric cross-entropy", ace_loss),
    # Prabhu et al. 2020
    "gdumb": Method("a class-balanced buffer, and training from scratch on it", balanced=True, retrains=True),
    # as CCMCL (arXiv:2102.09890) and OLCGM (arXiv:2206.11849): condensed images, replayed as in ER
    "condensed": Method(
        "experience replay from condensed images of each task", balanced=True, condenses=True, takes_loss=True
    ),
    "cls-er": Method(
        "experience replay with two averaged copies of the network",
        cls_loss,
        averaged=True,
        flags={
            "consistency": Flag(0.1, "weight of the distance to the averaged copies"),
            "average_decay": Flag(0.999, "decay of the averaged copies, for thousands of steps", decay),
        },
    ),
    "dgr": Method(
        "deep generative replay: one generator for all tasks",
        generative_loss,
        memory="generator",
        carries=True,
        distils=True,
        flags={"distill_weight": Flag(1.0, "share of distillation in the replay loss", probability)},
    ),
    "dim": Method(
        "a distilled generator for each task",
        generative_loss,
        memory="generator",
        distils=True,
        takes_loss=True,
        flags={"distill_weight": Flag(0.5, "share of distillation in the replay loss", probability)},
    ),
}


def replay_losses() -> dict[str, Method]:
    """The methods whose loss --replay-loss may name: it learns from one batch of a buffer beside the task."""
    return {
        name: method
        for name, method in METHODS.items()
        if method.memory == "buffer"
        and method.replay_batches == 1
        and not (method.keeps_logits or method.unlimited or method.retrains or method.condenses)
    }
