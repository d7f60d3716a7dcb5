"""The methods of continual learning: the loss of a step, and the memory that it needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from losses import distillation_loss, masked_cross_entropy
from replay.learner import Batch, Learner, Weights, joined


def er_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights
) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the current and the replayed batch, joined into one: experience replay (Chaudhry et
    al. 2019, arXiv:1902.10486)."""
    batch = joined([current, *replays])
    logits = learner(batch)
    return F.cross_entropy(logits, batch.y), logits[: len(current.y)]


def der_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights
) -> tuple[Tensor, Tensor]:
    """CE(current) + alpha * MSE(logits, stored logits) + beta * CE on a second draw.

    DER++ (Buzzega et al. 2020, arXiv:2004.07211, Eq. 6).
    """
    logits = learner(current)
    loss = F.cross_entropy(logits, current.y)
    if replays:
        first, second = replays
        loss = loss + weights.alpha * F.mse_loss(learner(first), first.logits[:, learner.number])
        loss = loss + weights.beta * F.cross_entropy(learner(second), second.y)
    return loss, logits


def ace_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights
) -> tuple[Tensor, Tensor]:
    """CE(current) + CE(replay), the first among some classes only: ER-ACE (Caccia et al. 2022,
    arXiv:2104.05025).

    CE(current) is among the classes of the batch and those not seen yet, as in mammoth; in the paper it is
    among the classes of the batch alone. Replay begins with the first task, as in the paper; in mammoth it
    begins with the second.
    """
    logits = learner(current)
    present = torch.zeros_like(weights.unseen).scatter(0, current.y, True)
    loss = masked_cross_entropy(logits, current.y, present | weights.unseen)
    for replay in replays:
        loss = loss + F.cross_entropy(learner(replay), replay.y)
    return loss, logits


def cls_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights
) -> tuple[Tensor, Tensor]:
    """Loss of ER + weights.consistency * MSE(logits, logits of an averaged copy): CLS-ER (Arani et al. 2022,
    arXiv:2201.12604).

    The second term is on the replayed batch. For each image, it takes the copy that gives its label the
    higher probability.
    """
    loss, logits = er_loss(learner, current, replays, weights)
    for replay in replays:
        with torch.no_grad():
            plastic, stable = (learner(replay, average) for average in learner.averages)
        surer = (x.softmax(1).gather(1, replay.y[:, None]) for x in (stable, plastic))  # (B, 1) each
        target = torch.where(torch.gt(*surer), stable, plastic)
        loss = loss + weights.consistency * F.mse_loss(learner(replay), target)
    return loss, logits


def generative_loss(
    learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights
) -> tuple[Tensor, Tensor]:
    """r * CE(current) + (1 - r) * loss on generated images of old classes, with r = weights.current.

    The loss on generated images is (1 - d) * CE + d * distillation from the network of the last task at
    temperature 2, with d = weights.distill. With d = 1 this is deep generative replay (Shin et al. 2017,
    arXiv:1705.08690) with the distillation of van de Ven & Tolias 2018 (arXiv:1809.10635), with one
    difference: they set the last network's probabilities of classes that it had not met to 0, and here these
    probabilities stay as they are.
    """
    logits = learner(current)
    loss = F.cross_entropy(logits, current.y)
    for replay in replays:
        found = learner(replay)
        replay_loss = (1 - weights.distill) * F.cross_entropy(found, replay.y)
        if weights.distill:
            with torch.no_grad():
                target = learner(replay, learner.previous)
            replay_loss = replay_loss + weights.distill * distillation_loss(found, target)
        loss = weights.current * loss + (1 - weights.current) * replay_loss
    return loss, logits


@dataclass(frozen=True)
class Method:
    """A row of the table of methods."""

    about: str
    loss: Callable[[Learner, Batch, Sequence[Batch], Weights], tuple[Tensor, Tensor]] = er_loss
    memory: str | None = "buffer"  # or "generator", or None
    draws: int = 1  # number of batches from memory per step
    keeps_logits: bool = False
    averaged: bool = False  # two averaged copies of each network, which count as memory
    balanced: bool = False  # the buffer holds an equal share of each class
    retrains: bool = (
        False  # networks are trained from scratch on memory alone at the end of each task, not on the stream
    )
    condenses: bool = False  # the buffer holds condensed images of each task in the place of real ones
    at_once: bool = False  # all tasks are learnt as one
    unlimited: bool = False  # the buffer keeps every image


METHODS = {
    "finetune": Method("plain training on one task after the other", memory=None),
    "joint": Method("all tasks at once, the upper bound", memory=None, at_once=True),
    "unlimited": Method("experience replay from every image of earlier tasks, a control", unlimited=True),
    "er": Method("experience replay"),
    "der++": Method("dark experience replay", der_loss, draws=2, keeps_logits=True),
    "er-ace": Method("experience replay with an asymmetric cross-entropy", ace_loss),
    # Prabhu et al. 2020
    "gdumb": Method("a class-balanced buffer, and training from scratch on it", balanced=True, retrains=True),
    # as CCMCL (arXiv:2102.09890) and OLCGM (arXiv:2206.11849): condensed images, replayed as in ER
    "condensed": Method(
        "experience replay from condensed images of each task", balanced=True, condenses=True
    ),
    "cls-er": Method("experience replay with a plastic and a stable copy", cls_loss, averaged=True),
    "dgr": Method("deep generative replay, with distillation", generative_loss, memory="generator"),
    "dim": Method("a distilled generator as memory", generative_loss, memory="generator"),
}
