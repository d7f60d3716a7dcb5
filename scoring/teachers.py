"""Classifiers trained on real images that serve a distillation: for herding, and as teachers of a generator
in stage 2."""

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from data import Data, fingerprint
from engine.runtime import Runtime
from engine.seeds import derive_seed
from models import Classifier, read_classifier, save_classifier
from scoring.evaluation import validate_group
from scoring.kept import kept_path, make_once
from scoring.recipes import Recipe, make_recipe
from scoring.sources import Real


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier that is trained on the whole training set when it is first asked for, and kept in
    folder/classifiers, where later commands find it.

    val_size: held-out images, which are recorded in the file.
    """

    purpose: str
    network: str
    recipe: Recipe
    data: Data
    folder: Path
    val_size: int
    seed: int
    runtime: Runtime

    @functools.cached_property
    def path(self) -> Path:
        """Its file."""
        trained = fingerprint(self.data.info, self.data.train.to(torch.device("cpu")))
        settings = (self.network, asdict(self.recipe), self.seed, trained)
        return kept_path(self.folder / "classifiers", self.purpose, ".pth", *settings)

    def read(self) -> Classifier:
        """Return it in eval mode, without gradients. Every rank has to call this. The surrounding random
        state is left alone."""
        make_once(self.path, self._train, self.runtime)
        return self.runtime.place(read_classifier(self.path).classifier)

    def _train(self) -> None:
        info, train = self.data.info, self.data.train
        smallest = int(torch.bincount(train.labels, minlength=info.num_classes).min())

        def keep(classifier: Classifier, seed: int) -> None:
            save_classifier(self.path, classifier, self.network, info, self.val_size)

        source = Real(train, smallest, info.num_classes)
        title = f"{self.network}, {self.purpose}"
        validate_group(
            self.network, source, self.data, self.recipe, [self.seed], self.runtime, keep, title=title
        )


def make_teachers(
    networks: Sequence[str], epochs: int, data: Data, folder: Path, val_size: int, seed: int, runtime: Runtime
) -> list[Classifier]:
    """Train a classifier of each of `networks` on real images for `epochs` passes.

    The recipe is "strong" without CutMix.
    """
    recipe = make_recipe("strong", data.info.name, epochs=epochs, mix_p=-1.0)
    return [
        TrainedClassifier(
            "teacher", network, recipe, data, folder, val_size, derive_seed(seed, "teacher", i), runtime
        ).read()
        for i, network in enumerate(networks)
    ]
