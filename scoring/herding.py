"""Real images chosen by herding."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data import Data, ImageSet
from engine.runtime import Runtime
from engine.tensors import eval_mode
from models import Classifier
from scoring.recipes import Recipe
from scoring.sources import Fixed
from scoring.teachers import classifier_path, trained_classifier


@dataclass
class HerdedSets:
    """Sets of training images chosen by herding, with the features of a classifier that is trained by
    `recipe` when a set is first asked for, and kept in folder/classifiers."""

    network: str
    recipe: Recipe
    data: Data
    folder: Path
    val_size: int
    seed: int
    runtime: Runtime

    @functools.cached_property
    def fields(self) -> dict:
        """What a row of results holds of the choice."""
        path = classifier_path("herding", self.network, self.recipe, self.data, self.folder, self.seed)
        return {"chosen_by": f"{self.network}, {self.recipe.epochs} epochs, {path.stem}"}

    def fixed(self, ipc: int) -> Fixed:
        """A source of `ipc` images of each class. Every rank has to call this."""
        classifier = trained_classifier(
            "herding",
            self.network,
            self.recipe,
            self.data,
            self.folder,
            self.val_size,
            self.seed,
            self.runtime,
        )
        order = herding_order(classifier, self.data.train, ipc, self.data.info.num_classes)
        return Fixed(*self.data.train.batch(order.flatten()))


@torch.no_grad()
def herding_order(
    classifier: Classifier, images: ImageSet, ipc: int, num_classes: int, batch_size: int = 1000
) -> Tensor:
    """Choose images whose mean feature follows that of their class: indices (num_classes, ipc), the best
    first.

    Herding (Welling 2009, doi:10.1145/1553374.1553517) as iCaRL uses it (arXiv:1611.07725, Alg. 4): each step
    adds the image that brings the mean feature of the chosen images closest to the mean feature of the class.
    The features are the last ones of `classifier`, scaled to unit length.
    """
    order = []
    with eval_mode(classifier):
        for label in range(num_classes):
            members = (images.labels == label).nonzero().flatten()
            parts = [
                classifier.logits_and_features(images.batch(part)[0])[1][-1].flatten(1)
                for part in members.split(batch_size)
            ]
            features = torch.nn.functional.normalize(torch.cat(parts))  # (M, F)
            mean = features.mean(0)
            total = torch.zeros_like(mean)
            free = torch.ones(len(members), dtype=torch.bool, device=members.device)
            for number in range(1, ipc + 1):
                distance = ((total + features) / number - mean).norm(dim=1)
                best = torch.where(free, distance, torch.inf).argmin()
                free[best] = False
                total = total + features[best]
                order.append(members[best])
    return torch.stack(order).view(num_classes, ipc)
