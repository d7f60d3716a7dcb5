"""Classifiers trained on real images that serve a distillation: for herding, and as teachers of a generator
in stage 2."""

from collections.abc import Sequence
from dataclasses import asdict
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


def classifier_path(purpose: str, network: str, recipe: Recipe, data: Data, folder: Path, seed: int) -> Path:
    """The file in folder/classifiers in which trained_classifier keeps its classifier."""
    trained = fingerprint(data.info, data.train.to(torch.device("cpu")))
    return kept_path(folder / "classifiers", purpose, ".pth", network, asdict(recipe), seed, trained)


def trained_classifier(
    purpose: str,
    network: str,
    recipe: Recipe,
    data: Data,
    folder: Path,
    val_size: int,
    seed: int,
    runtime: Runtime,
) -> Classifier:
    """Train a classifier on the whole training set, or read it from the file that an earlier command kept;
    return it in eval mode, without gradients.

    val_size: held-out images, which are recorded in the file. The surrounding random state is left alone.
    """
    path = classifier_path(purpose, network, recipe, data, folder, seed)

    def train() -> None:
        k = data.info.num_classes
        source = Real(data.train, int(torch.bincount(data.train.labels, minlength=k).min()), k)

        def keep(classifier: Classifier, seed: int) -> None:
            save_classifier(path, classifier, network, data.info, val_size)

        validate_group(network, source, data, recipe, [seed], runtime, keep, title=f"{network}, {purpose}")

    make_once(path, train, runtime)
    return runtime.place(read_classifier(path).classifier)


def make_teachers(
    networks: Sequence[str], epochs: int, data: Data, folder: Path, val_size: int, seed: int, runtime: Runtime
) -> list[Classifier]:
    """Train a classifier of each of `networks` on real images for `epochs` passes, by trained_classifier.

    The recipe is "strong" without CutMix.
    """
    recipe = make_recipe("strong", data.info.name, epochs=epochs, mix_p=-1.0)
    return [
        trained_classifier(
            "teacher", network, recipe, data, folder, val_size, derive_seed(seed, "teacher", i), runtime
        )
        for i, network in enumerate(networks)
    ]
