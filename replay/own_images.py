"""A task's own distilled images among its real ones, so that an image's origin says less about its class."""

import torch
from torch import Tensor

from data import ImageSet
from replay.condensing import TaskCondenser
from replay.generation import TaskGenerator
from replay.plan import Plan
from replay.replaying import Replay


class OwnImages:
    """What is distilled of a task, in the place of a share of its real images (--distilled-share) while its
    networks learn it."""

    def __init__(self, plan: Plan, replay: Replay, generator: TaskGenerator, condenser: TaskCondenser):
        self.plan, self.replay, self.generator, self.condenser = plan, replay, generator, condenser
        self.share = plan.options.distilled_share

    def of(self, task: int) -> ImageSet | None:
        """The distilled images of a task as memory will give them back; None without a share. Its generator
        is stored for it now."""
        if not self.share:
            return None
        if self.plan.method.condenses:
            return self.condenser.images()
        self.generator.keep(task)
        return self.replay.own_images(task)

    def replace(self, images: Tensor, y: Tensor, distilled: ImageSet) -> tuple[Tensor, Tensor]:
        """Put random ones of `distilled` in the place of the last images (B, C, H, W) of a batch and of their
        labels y (B,)."""
        real = len(y) - round(self.share * len(y))
        chosen = distilled.batch(torch.randint(len(distilled), (len(y) - real,), device=y.device))
        return torch.cat([images[:real], chosen[0]]), torch.cat([y[:real], chosen[1]])
