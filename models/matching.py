"""The matching term of stage 2: what `--match` names, its default weight, and its value on a batch."""

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
from losses import (
    attention_distance,
    distillation_loss,
    energy_distance,
    match_distributions,
    match_features,
    match_gradients,
    match_logits,
    match_standardized_logits,
    mean_distance,
)
from models import Classifier
from utils import Effect, UsageError

# Default weight of each matching term in the generator's loss, for --match-weight (logit, feat and grad:
# arXiv:2303.04707 and its code).
MATCH_WEIGHTS = {
    "logit": 0.01,
    "feat": 0.001,
    "grad": 0.001,
    "dist": 1.0,
    "mean": 1.0,
    "standardized": 1.0,
    "attention": 1.0,
    "none": 0.0,
}
METRICS_OF = ("logit", "feat", "grad")  # those that --metric applies to
BY_CLASS = ("mean", "attention")  # those that need the class-balanced batches of --match-batch
ANY_NUMBER = (
    "mean",
    "dist",
    "grad",
)  # those that compare any number of generated images of a class with any number of real ones

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
    """What is matched in stage 2, how strongly, and on which images.

    name: one of MATCH_WEIGHTS. weight: None = the name's. strategy: DSA operations for both sides, None =
    none; composition: how they combine. metric, bias, fc: see match_logits, match_features and
    match_gradients. batch: images of each class in a batch of its own, 0 = the images of the GAN's batch.
    classes: classes in such a batch, None = ten, or all if there are fewer. fresh: weight, relative to that
    of the pool's network, of the same distance in a network that is drawn anew at each step. last: dist and
    mean compare the last features alone, as DM does, in place of those of all layers and the logits.
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
    last: bool = False

    def check(self, gan_weight: float, teacher_weight: float = 0.0) -> None:
        """Raise UsageError for values that contradict each other. gan_weight, teacher_weight: those of the
        losses beside this term."""
        if self.metric and self.name not in METRICS_OF:
            raise UsageError(
                f"--metric {self.metric}: --match {self.name} takes none, expected --match "
                f"{', '.join(METRICS_OF)}"
            )
        if self.name in BY_CLASS and not self.batch:
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
            found = "none" if self.name == "none" else f"{self.name} without --match-batch"
            raise UsageError(
                "--gan-weight 0 is of matching alone, in batches of its own: expected --match and "
                f"--match-batch, found {found}"
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
        next(self.batches(train, torch.device("cpu"), class_names=class_names))
        if gan_weight or (pool_steps and self.name != "none"):
            steps = steps_per_epoch(len(train), batch_size)
        return (
            steps
            if gan_weight
            else max(1, len(train) // (self.batch * self.classes_of(train.labels.unique().numel())))
        )

    def classes_of(self, present: int) -> int:
        """The number of classes in a matching batch, if the set has images of `present` classes."""
        return min(self.classes or 10, present)

    def choose_operations(self, rng: torch.Generator) -> tuple[str, ...] | None:
        """The operations of a step, drawn on the host; None without a strategy."""
        return None if self.strategy is None else choose_operations(self.strategy, self.composition, rng)

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
            return itertools.repeat(torch.empty(1, 0, dtype=torch.long, device=device))
        classes = self.classes_of(train.labels.unique().numel())
        return class_batches(train.labels, self.batch, classes, *seed, skip=skip, class_names=class_names)

    def loss(
        self,
        pool_model: Classifier,
        real: Tensor,
        fake: Tensor,
        y: Tensor,
        augment: Augmentation | None,
        runtime: Runtime,
        groups: int = 0,
    ) -> Tensor:
        """The weighted distance between real and generated images (B, C, H, W) of the same labels y (B,), as
        `pool_model` sees them.

        groups: the batch consists of so many parts of equal size, each of one class; 0 = classes as they
        come. With groups, and a distance of ANY_NUMBER, the parts of `fake` may hold another number of images
        than those of `real`. The two sides pass the network separately, in the mode it is in, under one draw
        of the augmentation. Gradients reach `fake`.
        """
        weight = MATCH_WEIGHTS[self.name] if self.weight is None else self.weight
        if self.name == "grad":
            return weight * self._gradients(pool_model, real, fake, y, augment, groups)
        forward = runtime.compiled(Classifier.logits_and_features)
        with torch.no_grad():
            real_logits, real_features = forward(pool_model, real, augment)
        with frozen(pool_model):
            fake_logits, fake_features = forward(pool_model, fake, augment)
        if self.name == "logit":
            return weight * match_logits(real_logits, fake_logits, self.metric)
        if self.name == "standardized":
            return weight * match_standardized_logits(real_logits, fake_logits)
        if self.name == "feat":
            return weight * match_features(real_features, fake_features, self.metric)
        if self.name == "attention":
            pairs = zip(real_features, fake_features, strict=True)
            maps = [attention_distance(*(x.unflatten(0, (groups, -1)) for x in pair)) for pair in pairs]
            return weight * (torch.stack(maps).sum() + distillation_loss(fake_logits, real_logits))
        real_features, fake_features = (
            [pooled(f) for f in features] for features in (real_features, fake_features)
        )
        real_layers, fake_layers = [*real_features, real_logits], [*fake_features, fake_logits]
        if self.last:
            real_layers, fake_layers = real_features[-1:], fake_features[-1:]
        if not groups:
            return weight * match_distributions(real_layers, fake_layers, y)
        distance = mean_distance if self.name == "mean" else energy_distance
        pairs = zip(real_layers, fake_layers, strict=True)
        return (
            weight
            * torch.stack([distance(*(x.unflatten(0, (groups, -1)) for x in pair)) for pair in pairs]).mean()
        )

    def _gradients(
        self,
        pool_model: Classifier,
        real: Tensor,
        fake: Tensor,
        y: Tensor,
        augment: Augmentation | None,
        groups: int,
    ) -> Tensor:
        """The distance of match_gradients, averaged over the groups. It cannot be compiled: a gradient of a
        gradient."""
        parameters = list(pool_model.parameters())
        losses = []
        groups = groups or 1
        fake_y = y if len(fake) == len(y) else y.view(groups, -1)[:, 0].repeat_interleave(len(fake) // groups)
        for real_part, y_part, fake_part, fake_y_part in zip(
            *(x.chunk(groups) for x in (real, y, fake, fake_y)), strict=True
        ):
            real_grads = torch.autograd.grad(
                F.cross_entropy(pool_model(real_part, augment), y_part), parameters
            )
            fake_grads = torch.autograd.grad(
                F.cross_entropy(pool_model(fake_part, augment), fake_y_part), parameters, create_graph=True
            )
            losses.append(match_gradients(real_grads, fake_grads, self.metric, bias=self.bias, fc=self.fc))
        return torch.stack(losses).mean()


def recipe_settings(batch: int, teacher_weight: float | None = None) -> dict[str, Any]:
    """Keyword arguments of train_match (pool_match.py) for MATCH_RECIPES["energy"] with `batch` images of
    each class.

    With one image a class, which has no distance to another, means are matched.
    """
    r = MATCH_RECIPES["energy"]
    name, batch = ("mean", 2) if batch == 1 else (r["match"], batch)
    return {
        "epochs": 1,
        "gan_weight": r["gan_weight"],
        "gp_weight": 0.0,
        "lr_decay": r["lr_decay"],
        "matching": Matching(
            name, None, r["match_strategy"], r["match_composition"], batch=batch, fresh=r["match_fresh"]
        ),
        "pool_age": r["pool_age"],
        "pool_steps": r["pool_steps"],
        "teacher_weight": r["teacher_weight"] if teacher_weight is None else teacher_weight,
    }


def pooled(features: Tensor) -> Tensor:
    """Features (B, C, h, w) averaged over 4 x 4 patches, (B, D)."""
    return F.adaptive_avg_pool2d(features, min(4, features.shape[-1])).flatten(1)
