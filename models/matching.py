"""The matching term of stage 2: the batches it is taken on, and what the networks make of them."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from augment import Augmentation, choose_operations
from data import ImageSet, class_batches, steps_per_epoch
from engine.runtime import Runtime
from engine.tensors import frozen
from losses import LOSSES, View
from models import Classifier
from utils import Effect, UsageError

# Flags of pool_match.py that depend on others.
EFFECTS = (
    Effect(
        ("lr_d", "gp_weight", "diffaug"),
        lambda args: args.gan_weight,
        "with --gan-weight 0, which trains no discriminator",
    ),
    Effect(("match_strategy", "match_composition"), lambda args: args.match_aug, "without --match-aug"),
    Effect(("bias", "fc"), lambda args: args.match == "grad", "without --match grad"),
    Effect(
        (
            *("match_weight", "match_aug", "match_batch", "match_fresh"),
            *("pool", "pool_age", "pool_size", "pool_steps", "pool_data"),
        ),
        lambda args: args.match != "none",
        "with --match none",
    ),
    Effect(
        ("pool_data", "pool_lr", "pool_strategy"),
        lambda args: args.pool_steps and args.match != "none",
        "where no pool network is trained",
    ),
    Effect(("teachers", "teacher_epochs"), lambda args: args.teacher_weight, "without --teacher-weight"),
)

# The flags that --recipe-match sets; paper: those of arXiv:2303.04707, which are the defaults.
MATCH_RECIPES = {
    "paper": {},
    "energy": {
        "match": "dist",
        "match_aug": True,
        "match_strategy": "color_crop_cutout_flip_scale_rotate",
        "match_composition": "dc",
        "match_batch": 16,
        "gan_weight": 0.0,
        "pool": ["convnet_w32"],
        "pool_size": 4,
        "pool_age": 200,
        "pool_steps": 4,
        "pool_data": "generated",
        "batch_size": 100,
        "match_fresh": 0.33,
        "teacher_weight": 0.33,
        "epochs": 1,
        "lr": 1e-3,
        "lr_decay": "linear",
        "betas": [0.5, 0.99],
        "ema": 0.99,
        "eval_interval": 0,
    },
}


@dataclass(frozen=True)
class Matching:
    """What is matched in stage 2, with which weight, and on which images.

    name: a key of LOSSES, or "none". weight: None = that of the loss. strategy: DSA operations for both
    sides, None = none; composition: how they combine. metric, bias, fc: options of the losses that have them.
    batch: images of each class in a batch of its own, 0 = the images of the GAN's batch. classes: classes in
    such a batch, None = ten, or all if there are fewer. fresh: weight, relative to that of the pool's
    network, of the same distance in a network that is drawn anew at each step.
    """

    name: str = "logit"
    weight: float | None = None
    strategy: str | None = None
    composition: str = "dim"
    metric: str | None = None
    bias: bool = False
    fc: bool = False
    batch: int = 0
    classes: int | None = None
    fresh: float = 0.0

    def check(self, gan_weight: float, teacher_weight: float = 0.0) -> None:
        """Raise UsageError for values that contradict each other. gan_weight, teacher_weight: those of the
        losses beside this term."""
        with_metric = [name for name, loss in LOSSES.items() if "metric" in loss.options]
        if self.metric and self.name not in with_metric:
            raise UsageError(
                f"--metric {self.metric}: --match {self.name} takes none, expected --match "
                f"{', '.join(with_metric)}"
            )
        if self.name != "none" and "classes" in LOSSES[self.name].needs and not self.batch:
            raise UsageError(
                f"--match {self.name} compares classes: expected --match-batch, images of each class, found 0"
            )
        if self.classes and not self.batch:
            raise UsageError(f"--match-classes {self.classes} is of --match-batch, found 0")
        for flag, weight in (("--match-fresh", self.fresh), ("--teacher-weight", teacher_weight)):
            if weight and self.name == "none":
                raise UsageError(f"{flag} {weight:g}: expected a distance to go with, found --match none")
        if self.batch == 1 and self.name != "none":
            raise UsageError("--match-batch 1: expected two or more images of each class, or 0")
        if not gan_weight and (self.name == "none" or not self.batch):
            given = "none" if self.name == "none" else f"{self.name} without --match-batch"
            raise UsageError(
                "--gan-weight 0 is of matching alone, in batches of its own: expected --match and "
                f"--match-batch, found {given}"
            )

    def steps_per_epoch(
        self,
        train: ImageSet,
        batch_size: int,
        gan_weight: float,
        pool_steps: int,
        class_names: Sequence[str] = (),
    ) -> int:
        """The number of steps in a pass over the set: in the GAN's batches of `batch_size`, or without a GAN
        in matching batches.

        Raises UsageError, with the name of the class, if the set is too small for a batch of the GAN, of the
        pool's networks, or for one of a class.
        """
        batch = next(self.batches(train, torch.device("cpu"), class_names=class_names))
        if gan_weight or (pool_steps and self.name != "none"):
            steps = steps_per_epoch(len(train), batch_size)
        return steps if gan_weight else max(1, len(train) // batch.numel())

    def choose_operations(self, rng: torch.Generator) -> tuple[str, ...]:
        """The operations of a step, drawn on the host."""
        return choose_operations(self.strategy or "none", self.composition, rng)

    def batches(
        self,
        train: ImageSet,
        device: torch.device,
        *seed: int | str,
        skip: int = 0,
        class_names: Sequence[str] = (),
    ) -> Iterator[Tensor]:
        """Endless class-balanced batches of indices (classes, batch) into `train`, after the first `skip`;
        empty ones if batch is 0."""
        if not self.batch:
            return itertools.repeat(torch.empty(0, 0, dtype=torch.long, device=device))
        classes = min(self.classes or 10, train.labels.unique().numel())
        return class_batches(train.labels, self.batch, classes, *seed, skip=skip, class_names=class_names)

    def loss(
        self,
        network: Classifier,
        real: Tensor,
        fake: Tensor,
        y: Tensor,
        augment: Augmentation | None,
        runtime: Runtime,
        num_classes: int = 0,
    ) -> Tensor:
        """weight * distance(network(real), network(fake)) for images (B, C, H, W) of the same labels y (B,).

        num_classes: the batch consists of so many parts of equal size, each of one class; 0 = classes in any
        order. With a loss of Condensing (condense.py), the parts of `fake` may hold another number of images
        than those of `real`. The two sides pass the network separately, in the mode it is in, under one
        augmentation. Gradients reach `fake`.
        """
        loss = LOSSES[self.name]
        fake_y = y
        if len(fake) != len(y):
            fake_y = y.view(num_classes, -1)[:, 0].repeat_interleave(len(fake) // num_classes)
        sides = ((real, y), (fake, fake_y))
        if "gradients" in loss.needs:  # not compiled: a gradient of a gradient
            views = [
                View(labels, num_classes, gradients=gradients(network, images, labels, augment, num_classes))
                for images, labels in sides
            ]
        else:
            forward = runtime.compiled(Classifier.logits_and_features)
            with frozen(network):
                views = [
                    View(labels, num_classes, *forward(network, images, augment)) for images, labels in sides
                ]
        weight = loss.weight if self.weight is None else self.weight
        return weight * loss.distance(*views, **{name: getattr(self, name) for name in loss.options})


def gradients(
    network: Classifier, images: Tensor, y: Tensor, augment: Augmentation | None, num_classes: int
) -> list[tuple[Tensor, ...]]:
    """The gradients of the cross-entropy by the parameters, for each of the classes, or for the batch if
    num_classes is 0."""
    parameters = list(network.parameters())
    parts = zip(images.chunk(num_classes or 1), y.chunk(num_classes or 1), strict=True)
    return [
        torch.autograd.grad(
            F.cross_entropy(network(part, augment), labels), parameters, create_graph=images.requires_grad
        )
        for part, labels in parts
    ]


@dataclass(frozen=True)
class Teachers:
    """Trained classifiers, one a step in turn, and the weight of their cross-entropy for generated images."""

    networks: Sequence[Classifier] = ()
    weight: float = 0.0


NO_TEACHERS = Teachers()


def recipe_settings(batch: int) -> dict[str, Any]:
    """Keyword arguments of train_match (pool_match.py) for MATCH_RECIPES["energy"] with `batch` images of
    each class.

    With one image a class, which has no distance to another, means are matched.
    """
    r = MATCH_RECIPES["energy"]
    name, batch = ("mean", 2) if batch == 1 else (r["match"], batch)
    strategy = (r["match_strategy"], r["match_composition"])
    return {
        "epochs": 1,
        "gan_weight": r["gan_weight"],
        "gp_weight": 0.0,
        "lr_decay": r["lr_decay"],
        "matching": Matching(name, None, *strategy, batch=batch, fresh=r["match_fresh"]),
    }
