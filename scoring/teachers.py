"""Classifiers trained on real images that serve a distillation: for herding, and as teachers of a generator
in stage 2."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from data import Data, fingerprint
from engine.files import make_folder, short_hash
from engine.runtime import Runtime
from engine.seeds import derive_seed
from models import Classifier, read_classifier, save_classifier
from scoring.evaluation import validate_group
from scoring.recipes import Recipe, make_recipe
from scoring.sources import Real


def trained_classifier(
    purpose: str,
    network: str,
    recipe: Recipe,
    data: Data,
    folder: Path,
    val_size: int,
    seed: int,
    runtime: Runtime,
) -> Path:
    """Train a classifier on the whole training set, unless its file lies in folder/classifiers; return the
    path of the file.

    The file is named by `purpose` and a hash of all that it depends on, so that the same command finds it
    again. val_size: held-out images, which are recorded in the file. The surrounding random state is left
    alone.
    """
    k, trained = data.info.num_classes, fingerprint(data.info, data.train.to(torch.device("cpu")))
    about = json.dumps([network, asdict(recipe), seed, trained])
    path = folder / "classifiers" / f"{purpose}_{short_hash(about)}.pth"

    def train() -> None:
        make_folder(path.parent)
        source = Real(data.train, int(torch.bincount(data.train.labels, minlength=k).min()), k)

        def keep(classifier: Classifier, seed: int) -> None:
            save_classifier(path, classifier, network, data.info, val_size)

        validate_group(network, source, data, recipe, [seed], runtime, keep, title=f"{network}, {purpose}")

    runtime.on_main(lambda: None if path.exists() else train())
    return path


def make_teachers(
    networks: Sequence[str], epochs: int, data: Data, folder: Path, val_size: int, seed: int, runtime: Runtime
) -> list[Classifier]:
    """Train a classifier of each of `networks` on real images for `epochs` passes; return them in eval mode,
    without gradients.

    The recipe is "strong" without CutMix. Those whose files lie in folder/classifiers are read from there;
    see trained_classifier.
    """
    recipe = make_recipe("strong", data.info.name, epochs=epochs, mix_p=-1.0)
    seeds = [derive_seed(seed, "teacher", i) for i in range(len(networks))]
    paths = [
        trained_classifier("teacher", network, recipe, data, folder, val_size, seed, runtime)
        for network, seed in zip(networks, seeds, strict=True)
    ]
    return [runtime.place(read_classifier(path).classifier) for path in paths]
