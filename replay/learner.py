"""A network that is trained continually, its copies of earlier weights, and the inputs of its losses."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from augment import Augmentation
from data import DataInfo
from engine.optim import make_sgd, move, set_rate
from engine.runtime import Runtime
from engine.seeds import derive_seed, seeded
from models import Classifier, build_classifier


class Batch(NamedTuple):
    """Images (B, C, H, W) in [-1, 1], labels y (B,), stored logits (B, N, K) of the N networks, and the
    augmentation that was drawn."""

    images: Tensor
    y: Tensor
    logits: Tensor | None
    augment: Augmentation


@dataclass(frozen=True)
class TaskInfo:
    """What a loss may know of a task.

    flags: the values of the method's own flags. new_share: the classes of the task, as a share of the classes
    so far. unseen (K,): true for the classes that no task has brought yet.
    """

    flags: SimpleNamespace
    new_share: float
    unseen: Tensor


class Learner:
    """A network that is trained continually by plain SGD, with the copies of earlier weights that its method
    needs.

    decay: decay of the averages; None = no averages. averages: the plastic and the stable copy of CLS-ER.
    previous: frozen copy of the network at the end of the last task, kept within a task only.
    """

    def __init__(
        self,
        number: int,
        name: str,
        info: DataInfo,
        lr: float,
        decay: float | None,
        seed: int,
        runtime: Runtime,
    ):
        self.number, self.name, self.info, self.seed, self.runtime = number, name, info, seed, runtime
        self.model = runtime.place(self._fresh("init")).train()
        self.decay = decay
        self.lr, self.optim = lr, make_sgd(list(self.model.parameters()), lr, momentum=0, weight_decay=0)
        self.averages = [frozen_copy(self.model) for _ in range(0 if decay is None else 2)]
        self.previous: Classifier | None = None

    def _fresh(self, *parts: int | str) -> Classifier:
        with seeded(torch.device("cpu"), self.seed, self.name, *parts):
            return build_classifier(self.name, self.info)

    @property
    def deployed(self) -> Classifier:
        """The network to test: the stable copy if there is one."""
        return self.averages[1] if self.averages else self.model

    def restart(self, task: int) -> None:
        """Reinitialise the network in place, with new random weights."""
        self.model.load_state_dict(self._fresh("retrain", task).state_dict())

    def set_rate(self, factor: float) -> None:
        """Learn at `factor` times the learning rate from now on."""
        set_rate(self.optim, self.lr * factor)

    def remember(self) -> None:
        """Keep a frozen copy of the network as it is now in `previous`."""
        self.previous = frozen_copy(self.model)

    def update_averages(self, step: int) -> None:
        """Move the plastic and the stable copy, if there are any, towards the network, each with its own
        probability.

        Arani et al. 2022 (arXiv:2201.12604) and its code: the plastic copy is updated with probability 0.9,
        the stable one with 0.7. The decay at step t is at most 1 - 1 / (t + 1).
        """
        if not self.averages:
            return
        decay = min(1 - 1 / (step + 1), self.decay)
        numbers = torch.rand(
            2, generator=torch.Generator().manual_seed(derive_seed(self.seed, "averages", step))
        )
        for average, number, probability in zip(self.averages, numbers.tolist(), (0.9, 0.7), strict=False):
            if number < probability:
                move(average, self.model, 1 - decay)

    def state_dict(self) -> dict:
        """Return the states of the network and of its copies."""
        return {
            "model": self.model.state_dict(),
            "averages": [average.state_dict() for average in self.averages],
            "previous": self.previous and self.previous.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        self.model.load_state_dict(state["model"])
        for average, values in zip(self.averages, state["averages"], strict=True):
            average.load_state_dict(values)
        if state["previous"] is not None:
            self.remember()
            self.previous.load_state_dict(state["previous"])

    def __call__(self, batch: Batch, model: Classifier | None = None) -> Tensor:
        """Return the logits (B, K) of the network, or of `model`, one of its copies."""
        with self.runtime.autocast():
            return self.runtime.call(model or self.model, batch.images, batch.augment)


def frozen_copy(model: Classifier) -> Classifier:
    """A copy of the network as it is now, in eval mode and without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def joined(batches: Sequence[Batch]) -> Batch:
    """Concatenate batches; each image keeps its own augmentation, and stored logits are left out."""
    augment = Augmentation.joined([batch.augment for batch in batches])
    return Batch(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.y for batch in batches]),
        None,
        augment,
    )


class Ensemble(nn.Module):
    """An ensemble that averages the softmax outputs of its networks and returns the logarithm of the mean (B,
    K)."""

    def __init__(self, models: Sequence[nn.Module]):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (B, K) of images (B, C, H, W) in [-1, 1]."""
        together = torch.stack([model(images).log_softmax(1) for model in self.models])
        return together.logsumexp(0) - math.log(len(self.models))
