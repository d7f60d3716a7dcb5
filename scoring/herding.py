"""Real images chosen by herding."""

from dataclasses import dataclass

import torch
from torch import Tensor

from data import ImageSet
from engine.tensors import eval_mode
from models import Classifier
from scoring.sources import Fixed
from scoring.teachers import TrainedClassifier


@dataclass(frozen=True)
class HerdedSets:
    """Sets of training images chosen by herding, with the features of `chooser`."""

    chooser: TrainedClassifier

    @property
    def fields(self) -> dict:
        """What a row of results holds of the choice."""
        chooser = self.chooser
        return {"chosen_by": f"{chooser.network}, {chooser.recipe.epochs} epochs, {chooser.path.stem}"}

    def fixed(self, ipc: int) -> Fixed:
        """A source of `ipc` images of each class. Every rank has to call this."""
        data = self.chooser.data
        order = herding_order(self.chooser.read(), data.train, ipc, data.info.num_classes)
        return Fixed(*data.train.batch(order.flatten()))


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
