"""How a classifier is trained: the recipes of stage 3."""

import math
from dataclasses import dataclass, replace

from augment import parse_strategy
from data import DATASETS


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: SGD with momentum 0.9 and weight decay 5e-4 on augmented batches."""

    epochs: int
    batch_size: int
    lr: float
    lr_decay: str  # none; half: x 0.1 after half of the epochs; cosine: to 0
    dsa_strategy: str
    dsa_composition: str
    mix_p: float  # probability of CutMix for a batch; -1 = never
    ema: float = 0.0  # decay of the moving average of the weights, which is tested in their place; 0 = off

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        if self.lr_decay == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr * (0.1 if self.lr_decay == "half" and epoch >= self.epochs // 2 else 1)


RECIPES = {
    # arXiv:2303.04707 and its code
    "dim": Recipe(1000, 128, 0.01, "none", "color_crop", "dim", -1.0),
    # the evaluation of the condensation papers since DSA (arXiv:2102.08259)
    "dc": Recipe(1000, 256, 0.01, "half", "color_crop_cutout_flip_scale_rotate", "dc", -1.0),
    # today's usual training of classifiers; flips are left out for sets in which a flip can change the class
    "strong": Recipe(1000, 128, 0.01, "cosine", "flip_color_crop", "dim", 0.5, 0.99),
}


def make_recipe(name: str, dataset: str, **given) -> Recipe:
    """Return the recipe called `name` for `dataset`, with those of its values replaced that are given and not
    None.

    Raises UsageError if its dsa_strategy names an unknown operation.
    """
    recipe = RECIPES[name]
    if name == "strong" and not (dataset in DATASETS and DATASETS[dataset].flip):
        recipe = replace(recipe, dsa_strategy=recipe.dsa_strategy.removeprefix("flip_"))
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    parse_strategy(recipe.dsa_strategy, "--dsa-strategy")
    return recipe
