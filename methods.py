"""The methods of continual learning: what a network learns at a step from the current task and from its memory.

Each loss takes the network's learner, the current batch, the batches drawn from memory (none while it is empty), and the weights,
and gives the loss and the logits (B, K) of the current batch.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augment import Augmentation
from data import DataInfo
from losses import distillation_loss, masked_cross_entropy
from models import Classifier, build_classifier
from runtime import Runtime
from utils import derive_seed, seeded


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1], labels (B,), logits (B, N, K) that the N networks once had, and the draw of augmentation."""

    images: Tensor
    y: Tensor
    logits: Tensor | None
    augment: Augmentation


@dataclass(frozen=True)
class Weights:
    """What the losses weigh their terms with. unseen (K,): the classes that no task has brought yet."""

    alpha: float  # of the distance to stored logits (der++)
    beta: float  # of the cross-entropy on the second draw (der++)
    consistency: float  # of the distance to the averaged networks (cls-er)
    distill: float  # share of distillation in the loss on generated images; the rest is cross-entropy
    current: float  # share of the current batch beside generated images
    unseen: Tensor


class Learner:
    """A network that is trained continually by plain SGD, with what its method keeps of its earlier weights.

    averages: the plastic and the stable copy of CLS-ER, where `decay`, theirs, is given. previous: the network at the end of the last
    task, frozen, during a task.
    """

    def __init__(self, number: int, name: str, info: DataInfo, lr: float, decay: float | None, seed: int, runtime: Runtime):
        self.number, self.name, self.info, self.seed, self.runtime = number, name, info, seed, runtime
        self.model = runtime.place(self._fresh("init")).train()
        self.decay = decay
        self.optim = torch.optim.SGD(self.model.parameters(), lr=lr)
        self.averages = [copy.deepcopy(self.model).eval().requires_grad_(False) for _ in range(0 if decay is None else 2)]
        self.previous: Classifier | None = None

    def _fresh(self, *parts: int | str) -> Classifier:
        with seeded(torch.device("cpu"), self.seed, self.name, *parts):
            return build_classifier(self.name, self.info)

    @property
    def deployed(self) -> Classifier:
        """The network to test: the stable copy if there is one."""
        return self.averages[1] if self.averages else self.model

    def restart(self, task: int) -> None:
        """Put the network back to a fresh initialisation, in place."""
        self.model.load_state_dict(self._fresh("retrain", task).state_dict())

    def remember(self) -> None:
        """Freeze a copy of the network as it is."""
        self.previous = copy.deepcopy(self.model).eval().requires_grad_(False)

    @torch.no_grad()
    def update_averages(self, step: int) -> None:
        """Move the plastic and the stable copy towards the network, each at random, the stable one less often.

        Arani et al. 2022 (arXiv:2201.12604) and its code: the decay is at most 1 - 1 / (t + 1) at step t, the probabilities 0.9 and 0.7.
        """
        decay = min(1 - 1 / (step + 1), self.decay)
        draws = torch.rand(2, generator=torch.Generator().manual_seed(derive_seed(self.seed, "averages", step)))
        for average, draw, probability in zip(self.averages, draws.tolist(), (0.9, 0.7), strict=False):
            if draw < probability:
                for target, source in zip(average.parameters(), self.model.parameters(), strict=True):
                    target.lerp_(source, 1 - decay)
                for target, source in zip(average.buffers(), self.model.buffers(), strict=True):
                    target.copy_(source)

    def state_dict(self) -> dict:
        """The networks."""
        return {
            "model": self.model.state_dict(),
            "averages": [average.state_dict() for average in self.averages],
            "previous": self.previous and self.previous.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from state_dict()."""
        self.model.load_state_dict(state["model"])
        for average, values in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(values)
        if state["previous"] is not None:
            self.remember()
            self.previous.load_state_dict(state["previous"])

    def __call__(self, batch: Batch, model: Classifier | None = None) -> Tensor:
        """The logits (B, K) of the network, or of another `model` that it keeps, such as a copy."""
        with self.runtime.autocast():
            return self.runtime.call(model or self.model, batch.images, batch.augment)


def joined(batches: Sequence[Batch]) -> Batch:
    """One batch of several, each image under its own draw of augmentation; stored logits are left out."""
    augment = Augmentation.joined([batch.augment for batch in batches])
    return Batch(torch.cat([batch.images for batch in batches]), torch.cat([batch.y for batch in batches]), None, augment)


def er_loss(learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights) -> tuple[Tensor, Tensor]:
    """Cross-entropy on the current batch and the one drawn, as one: experience replay (Chaudhry et al. 2019, arXiv:1902.10486)."""
    batch = joined([current, *replays])
    logits = learner(batch)
    return F.cross_entropy(logits, batch.y), logits[: len(current.y)]


def der_loss(learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights) -> tuple[Tensor, Tensor]:
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


def ace_loss(learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights) -> tuple[Tensor, Tensor]:
    """CE(current) among its own and the unseen classes + CE(replay): ER-ACE (Caccia et al. 2022, arXiv:2104.05025).

    The unseen classes compete as in mammoth; the paper's sum is over those of the batch alone. Replay begins with the first task, as
    in the paper, and in mammoth with the second.
    """
    logits = learner(current)
    present = torch.zeros_like(weights.unseen).scatter(0, current.y, True)
    loss = masked_cross_entropy(logits, current.y, present | weights.unseen)
    for replay in replays:
        loss = loss + F.cross_entropy(learner(replay), replay.y)
    return loss, logits


def cls_loss(learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights) -> tuple[Tensor, Tensor]:
    """ER's + weight * MSE to the logits of whichever averaged copy is surer of the label: CLS-ER (Arani et al. 2022, arXiv:2201.12604)."""
    loss, logits = er_loss(learner, current, replays, weights)
    for replay in replays:
        with torch.no_grad():
            plastic, stable = (learner(replay, average) for average in learner.averages)
        surer = (x.softmax(1).gather(1, replay.y[:, None]) for x in (stable, plastic))  # (B, 1) each
        target = torch.where(torch.gt(*surer), stable, plastic)
        loss = loss + weights.consistency * F.mse_loss(learner(replay), target)
    return loss, logits


def generative_loss(learner: Learner, current: Batch, replays: Sequence[Batch], weights: Weights) -> tuple[Tensor, Tensor]:
    """r * CE(current) + (1 - r) * loss on generated images of old classes, r = weights.current.

    That loss is (1 - d) * CE + d * distillation of the network of the last task at temperature 2, d = weights.distill; with d = 1
    deep generative replay (Shin et al. 2017, arXiv:1705.08690) as van de Ven & Tolias 2018 (arXiv:1809.10635) distil it, but that the
    last network's outputs for classes that it had not met keep what probability it gives them, where theirs are set to 0.
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
    """A line of the table of methods."""

    about: str
    loss: Callable[[Learner, Batch, Sequence[Batch], Weights], tuple[Tensor, Tensor]] = er_loss
    memory: str | None = "buffer"  # or "generator", or None
    draws: int = 1  # batches from memory at a step
    keeps_logits: bool = False
    averaged: bool = False  # two averaged copies of each network, which count as memory
    balanced: bool = False  # the buffer, by class
    retrains: bool = False  # from scratch at the end of each task, on memory alone, instead of on the stream
    at_once: bool = False  # all tasks are one
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
    "cls-er": Method("experience replay with a plastic and a stable copy", cls_loss, averaged=True),
    "dgr": Method("deep generative replay, with distillation", generative_loss, memory="generator"),
    "dim": Method("a distilled generator as memory", generative_loss, memory="generator"),
}


class Ensemble(nn.Module):
    """Networks whose softmax outputs are averaged; gives the logarithm of the mean (B, K)."""

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1]."""
        together = torch.stack([model(images).log_softmax(1) for model in self.models])
        return together.logsumexp(0) - math.log(len(self.models))
