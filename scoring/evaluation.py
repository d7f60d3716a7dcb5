"""Score a source of images: train fresh classifiers on it and test them on real images."""

import argparse
import math
import statistics
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from data import Data, ImageSet
from engine.runtime import Runtime
from engine.seeds import RandomStreams, derive_seed, seeded
from engine.tensors import eval_mode
from models import Classifier, GanCheckpoint, build_classifier
from scoring.recipes import RECIPES, Recipe
from scoring.results import Cost, Outcome
from scoring.sources import Generated
from scoring.trainer import train_steps, train_together
from utils import Effect, count, out_of_memory_hint, positive_int, probability_or_off, tell

BUDGETS = ("stream", "fixed")
# The flags of evaluations in training. Without --eval-interval a held-out split may still be kept for a later
# stage.
EVALUATIONS = (
    Effect(
        ("eval_model", "budget", "ipc", "repeats", "recipe", "epochs_eval", "mix_p"),
        lambda args: 0 < args.eval_interval <= args.epochs,
        "where nothing is evaluated: --eval-interval is 0 or more than --epochs",
    ),
    Effect(
        ("val_size",),
        lambda args: not args.val_size or args.eval_interval <= args.epochs,
        "but to hold images out: --eval-interval is more than --epochs, so that none is tested and no "
        "best.pth is chosen",
    ),
)


def add_evaluation_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the evaluations in training."""
    add = parser.add_argument
    add("--eval-interval", type=count, default=10, help="epochs between evaluations; 0 = never")
    add(
        "--budget",
        choices=BUDGETS,
        default="stream",
        help="fixed: ipc images per class, drawn once; stream: drawn anew at each epoch",
    )
    add("--ipc", type=positive_int, default=50, help="images per class in an epoch of a classifier")
    add_classifier_flags(parser, repeats=1)
    parser.set_defaults(epochs_eval=1000)


def add_classifier_flags(parser: argparse.ArgumentParser, repeats: int) -> None:
    """Declare the flags of the classifiers that are trained and tested. repeats: default of --repeats."""
    add = parser.add_argument
    add("--eval-model", nargs="+", default=["convnet"], help="networks to train on the images")
    add("--repeats", type=positive_int, default=repeats, help="classifiers of a row, or of an evaluation")
    add(
        "--recipe",
        choices=RECIPES,
        default="dim",
        help="training as in DiM, as for distilled sets, or today's",
    )
    add("--epochs-eval", type=positive_int, help="epochs of a classifier (default: the recipe's, 1000)")
    add("--mix-p", type=probability_or_off, help="probability of CutMix; -1 = never (default: the recipe's)")


@torch.no_grad()
def confusion_matrix(
    classifier: nn.Module, images: ImageSet, num_classes: int, batch_size: int = 1000
) -> Tensor:
    """Count the images of class i that are classified as class j: a matrix (K, K), in eval mode."""
    counts = torch.zeros(num_classes * num_classes, dtype=torch.long, device=images.labels.device)
    with eval_mode(classifier):
        for index in torch.arange(len(images), device=images.labels.device).split(batch_size):
            x, y = images.batch(index)
            counts += torch.bincount(y * num_classes + classifier(x).argmax(1), minlength=len(counts))
    return counts.view(num_classes, num_classes)


def accuracy(confusion: Tensor) -> float:
    """Percentage of images that are classified correctly."""
    return 100 * confusion.trace().item() / confusion.sum().item()


def curve_epochs(epochs: int, points: int) -> list[int]:
    """Return the epochs after which a curve is tested: at most `points`, evenly spaced in their logarithm,
    the last epoch included."""
    return sorted({round(epochs ** (i / points)) for i in range(1, points + 1)})


def validate_group(
    network: str,
    source,
    data: Data,
    recipe: Recipe,
    seeds: Sequence[int],
    runtime: Runtime,
    keep: Callable[[Classifier, int], None] | None = None,
    curve: int = 0,
    title: str = "",
) -> list[Outcome]:
    """Train one fresh classifier per seed on `source` (see sources.py), side by side, and test each on
    data.evaluation_split.

    keep(classifier, seed) is called with each classifier after its training. curve: largest number of tests
    during training, 0 = none. The result of a classifier depends on its seed alone. The surrounding random
    state is restored, so that evaluating more often does not change a training. Classifiers of the same seed
    start from the same weights, whatever the source.
    """
    num_classes, tested = data.info.num_classes, curve_epochs(recipe.epochs, curve) if curve else []
    classifiers, trainings, outcomes = [], [], []

    def test(classifier: nn.Module) -> Tensor:
        return confusion_matrix(classifier, data.evaluation_split[1], num_classes)

    def on_the_way(outcome: Outcome) -> Callable[[int, nn.Module, Cost], None]:
        def after_epoch(epoch: int, classifier: nn.Module, cost: Cost) -> None:
            if epoch in tested:
                outcome.curve.append((cost.images_seen, accuracy(test(classifier))))

        return after_epoch

    for seed in seeds:
        with seeded(runtime.device, seed, "init"):
            classifiers.append(runtime.place(build_classifier(network, data.info)))
        streams = RandomStreams.seeded(seed, runtime.device)
        with out_of_memory_hint("--ipc"):
            epochs, num_images, stored = source.open(seed, streams)
        outcomes.append(Outcome(0.0, Cost(), num_images=num_images, num_bytes=stored))
        trainings.append(
            train_steps(
                classifiers[-1], epochs, recipe, streams, runtime, on_the_way(outcomes[-1]) if curve else None
            )
        )
    total_steps = recipe.epochs * math.ceil(source.per_epoch / recipe.batch_size)
    costs = train_together(trainings, total_steps, runtime, title=title or network)
    for classifier, seed, outcome, cost in zip(classifiers, seeds, outcomes, costs, strict=True):
        if keep is not None:
            keep(classifier, seed)
        confusion = test(classifier)
        outcome.accuracy, outcome.cost, outcome.confusion = accuracy(confusion), cost, confusion.tolist()
    return outcomes


def seed_groups(
    seed: int, network: str, ipc: int, first: int, repeats: int, together: int | None, runtime: Runtime
) -> list[list[int]]:
    """Return the seeds of the classifiers number `first` to `repeats` - 1, in groups that are trained side by
    side.

    together: size of a group; None = all classifiers of a rank with CUDA graphs, one without.
    """
    seeds = [derive_seed(seed, network, ipc, i) for i in range(first, repeats)]
    size = together or (max(1, math.ceil(len(seeds) / runtime.world_size)) if runtime.graphs else 1)
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def evaluate_generator(
    generator: nn.Module,
    data: Data,
    networks: list[str],
    budget: str,
    ipc: int,
    repeats: int,
    recipe: Recipe,
    seed: int,
    runtime: Runtime,
) -> dict[str, float]:
    """Evaluate a generator during stages 1 and 2.

    Returns {"val_accuracy" or "test_accuracy": mean in percent}; with several networks also the mean of each,
    such as "val_accuracy_convnet".
    """
    runtime.share_buffers(generator)
    source = Generated(generator, ipc, budget == "fixed", 0, runtime)
    jobs = [
        (network, seeds)
        for network in networks
        for seeds in seed_groups(seed, network, ipc, 0, repeats, None, runtime)
    ]
    groups = runtime.spread(lambda job: validate_group(job[0], source, data, recipe, job[1], runtime), jobs)
    name = f"{data.evaluation_split[0]}_accuracy"
    means = {}
    for network in networks:
        accs = [
            outcome.accuracy
            for job, group in zip(jobs, groups, strict=True)
            if job[0] == network
            for outcome in group
        ]
        means[f"{name}_{network}"] = statistics.mean(accs)
    return {name: statistics.mean(means.values())} | (means if len(means) > 1 else {})


def warn_of_seen_images(checkpoint: GanCheckpoint, val_size: int) -> None:
    """Warn if the checkpoint was trained on images that are held out now."""
    if val_size > (checkpoint.val_size or 0):
        seen = "unknown, taken as 0" if checkpoint.val_size is None else checkpoint.val_size
        tell(
            f"warning: --val-size {val_size}: {checkpoint.path} was trained with --val-size {seen}: it has "
            "seen images held out now"
        )
