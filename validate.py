"""Stage 3: train fresh classifiers on generated images alone and test them on real ones.

    python validate.py --tag test --pretrain-weight results/match/last.pth

Prints a table and adds its rows to results/TAG/results.json. The reported accuracy is that of the last epoch, in eval
mode, as mean and sample standard deviation over `--repeats` classifiers. Stopped, the same command goes on with the
classifier it was at.
"""

import argparse
import hashlib
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data as datasets
from augment import COMPOSITIONS, draw_cutmix, draw_dsa, parse_strategy
from data import Data, DataInfo, ImageSet, balanced_epochs, load_data
from models import Classifier, GanCheckpoint, Generator, build_classifier, network_name, read_gan
from results import Cost, ResultsFile, print_table
from run_folder import make_folder, run_path
from runtime import Runtime, device_name, make_runtime
from storage import num_bytes
from utils import (
    Parser,
    UsageError,
    cli,
    count,
    derive_seed,
    environment,
    eval_mode,
    file_hash,
    locked,
    positive,
    positive_int,
    probability_or_off,
    seeded,
)

SOURCES = ("generator", "random-real", "real")
BUDGETS = ("stream", "fixed")
CUTMIX_BETA = 1.0


@dataclass(frozen=True)
class Recipe:
    """How a classifier is trained: SGD with momentum 0.9 and weight decay 5e-4 on augmented batches."""

    epochs: int
    batch_size: int
    lr: float
    decay_at_half: bool  # rate x 0.1 after half of the epochs
    dsa_strategy: str
    dsa_composition: str
    mix_p: float  # probability of CutMix for a batch; -1 = never


RECIPES = {
    # arXiv:2303.04707 and its code
    "dim": Recipe(1000, 128, 0.01, False, "color_crop", "dim", -1.0),
    # what the condensation papers evaluate with since DSA (arXiv:2102.08259)
    "dc": Recipe(1000, 256, 0.01, True, "color_crop_cutout_flip_scale_rotate", "dc", -1.0),
}


def image_epochs(
    source: str,
    budget: str,
    ipc: int,
    num_classes: int,
    seed: int,
    train: ImageSet | None,
    generator: Generator | None,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless epochs of training images (num_classes * ipc, C, H, W) in [-1, 1] and balanced labels.

    generator: fresh images at each epoch on the budget "stream", one draw for all epochs on "fixed".
    random-real: one random subset of the real images for all epochs. real: fresh real images at each epoch, on both.
    """
    if source == "generator":
        labels = torch.arange(num_classes, device=device).repeat_interleave(ipc)
        while True:
            images = generate(generator, labels)
            yield images, labels
            while budget == "fixed":
                yield images, labels
    epochs = balanced_epochs(train.labels, ipc, num_classes, seed, source)
    for index in epochs:
        images, labels = train.batch(index)
        yield images, labels
        while source == "random-real":
            yield images, labels


@torch.no_grad()
def generate(generator: Generator, labels: Tensor, batch_size: int = 500) -> Tensor:
    """One image (N, C, H, W) in [-1, 1] for each label (N,), in eval mode, z from the running random numbers."""
    with eval_mode(generator):
        return torch.cat([generator.sample(part) for part in labels.split(batch_size)])


def train_classifier(
    classifier: Classifier, epochs_of_images: Iterator[tuple[Tensor, Tensor]], recipe: Recipe, runtime: Runtime, title: str = ""
) -> Cost:
    """Train `classifier` in place for recipe.epochs passes, each over the next epoch of images.

    Batches are min(batch size, images available); the last partial batch is used. Raises ValueError for zero steps.
    """
    optimizer = torch.optim.SGD(classifier.parameters(), lr=recipe.lr, momentum=0.9, weight_decay=5e-4)
    cost = Cost()
    classifier.train()
    for epoch in tqdm(range(recipe.epochs), desc=title, unit="epoch", leave=False, disable=None, dynamic_ncols=True):
        if recipe.decay_at_half and epoch == recipe.epochs // 2:
            optimizer.param_groups[0]["lr"] = recipe.lr * 0.1
        start = time.perf_counter()
        images, labels = next(epochs_of_images)
        runtime.synchronize()
        generated = time.perf_counter()
        for index in torch.randperm(len(labels), device=labels.device).split(recipe.batch_size):
            loss = classifier_loss(classifier, images[index], labels[index], recipe, runtime)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            cost.steps += 1
            cost.images_seen += len(index)
        runtime.synchronize()
        cost.seconds_generate += generated - start
        cost.seconds_train += time.perf_counter() - generated
    if cost.steps == 0:
        raise ValueError("a classifier was trained for zero steps")
    return cost


def classifier_loss(classifier: Classifier, images: Tensor, y: Tensor, recipe: Recipe, runtime: Runtime) -> Tensor:
    """Cross-entropy on an augmented batch (B, C, H, W) of labels y (B,), each image with its own DSA parameters."""
    side = images.shape[-1]
    augment = draw_dsa(recipe.dsa_strategy, recipe.dsa_composition, len(images), side, images.device)
    if recipe.mix_p <= 0 or float(torch.rand(())) >= recipe.mix_p:
        with runtime.autocast():
            logits = classifier(images, augment)
        return F.cross_entropy(logits, y)
    mix, partner, share = draw_cutmix(len(images), side, CUTMIX_BETA, images.device)
    with runtime.autocast():
        logits = classifier(images, lambda x: mix(augment(x)))
    return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[partner])


@torch.no_grad()
def accuracy(classifier: nn.Module, images: ImageSet, batch_size: int = 1000) -> float:
    """Percent of `images` classified right, in eval mode."""
    with eval_mode(classifier):
        correct = torch.zeros((), device=images.labels.device)
        for index in torch.arange(len(images), device=images.labels.device).split(batch_size):
            x, y = images.batch(index)
            correct += (classifier(x).argmax(1) == y).sum()
    return 100 * correct.item() / len(images)


def validate_once(
    network: str, source: str, budget: str, ipc: int, data: Data, generator: Generator | None, recipe: Recipe, seed: int, runtime: Runtime
) -> tuple[float, Cost]:
    """Train one fresh classifier and test it on data.referee: (percent, cost).

    Depends on `seed` alone and leaves the surrounding random numbers as they were, so that evaluating more often does
    not change a training. Sources share the initialisation of their classifiers.
    """
    device = runtime.device
    with seeded(device, seed, "init"):
        classifier = runtime.place(build_classifier(network, data.info))
    with seeded(device, seed, "train"):
        epochs = image_epochs(source, budget, ipc, data.info.num_classes, seed, data.train, generator, device)
        cost = train_classifier(classifier, epochs, recipe, runtime, title=f"{network} on {source}, ipc {ipc}")
    return accuracy(classifier, data.referee[1]), cost


def evaluate_generator(
    generator: Generator, data: Data, networks: list[str], budget: str, ipc: int, repeats: int, recipe: Recipe, seed: int, runtime: Runtime
) -> dict[str, float]:
    """The evaluation of stages 1 and 2: {"val_accuracy" or "test_accuracy": mean percent}, and each network's if several."""
    name = f"{data.referee[0]}_accuracy"
    means = {}
    for network in networks:
        seeds = [derive_seed(seed, network, ipc, repeat) for repeat in range(repeats)]
        accs = [validate_once(network, "generator", budget, ipc, data, generator, recipe, s, runtime)[0] for s in seeds]
        means[f"{name}_{network}"] = statistics.mean(accs)
    return {name: statistics.mean(means.values())} | (means if len(means) > 1 else {})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what is trained on
    parser.add_argument("--pretrain-weight", help="checkpoint of gen_condense.py, pool_match.py or the reference code")
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES), help="rows of the table")
    parser.add_argument(
        "--budget", choices=BUDGETS, default="stream", help="fixed: ipc images a class, drawn once; stream: fresh at each epoch"
    )
    parser.add_argument("--ipc", nargs="+", type=positive_int, default=[50], help="images per class and epoch")
    # data
    parser.add_argument("--data", choices=datasets.NAMES, help="image set (default: the checkpoint's, or cifar10)")
    parser.add_argument("--data-dir", default="datasets", help="where its files lie or are downloaded to; for folder, PATH")
    parser.add_argument("--image-size", type=int, choices=(28, 32), help="pixels of --data folder (default 32)")
    parser.add_argument("--val-size", type=count, default=0, help="test on this many held-out training images instead of the test set")
    # classifiers
    parser.add_argument("--eval-model", nargs="+", default=["convnet"], help="networks to train")
    parser.add_argument("--repeats", type=positive_int, default=5, help="classifiers for each row")
    parser.add_argument("--recipe", choices=RECIPES, default="dim", help="sets those of the flags below that are not given")
    parser.add_argument("--epochs-eval", type=positive_int, help="epochs of a classifier (default: the recipe's, 1000)")
    parser.add_argument("--batch-size", type=positive_int, help="(default: the recipe's, 128 or 256)")
    parser.add_argument("--lr", type=positive, help="learning rate (default: the recipe's, 0.01)")
    parser.add_argument("--mix-p", type=probability_or_off, default=-1.0, help="probability of CutMix for a batch; -1 = never")
    parser.add_argument("--dsa-strategy", help="augmentation, such as color_crop, or none (default: the recipe's)")
    parser.add_argument("--dsa-composition", choices=COMPOSITIONS, help="how its operations combine (default: the recipe's)")
    parser.add_argument("--seed", type=count, default=0, help="of classifiers and image draws")
    # run
    parser.add_argument("--tag", required=True, help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, help="bf16 autocast (default: on CUDA)")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (default: on CUDA)")
    return parser.parse_args(argv)


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The recipe named, with the flags that were given in its place."""
    given = {
        "epochs": args.epochs_eval,
        "batch_size": args.batch_size,
        "lr": args.lr,
        "mix_p": args.mix_p,
        "dsa_strategy": args.dsa_strategy,
        "dsa_composition": args.dsa_composition,
    }
    recipe = replace(RECIPES[args.recipe], **{name: value for name, value in given.items() if value is not None})
    parse_strategy(recipe.dsa_strategy)
    return recipe


def load_inputs(args: argparse.Namespace) -> tuple[Data, GanCheckpoint | None]:
    """The checkpoint, if one is given, and those splits of its set that are needed."""
    if "generator" in args.source and args.pretrain_weight is None:
        raise UsageError("--source generator needs --pretrain-weight, the checkpoint of a generator")
    checkpoint = read_gan(args.pretrain_weight) if args.pretrain_weight else None
    name = checkpoint.data_name(args.data) if checkpoint else args.data or "cifar10"
    info = checkpoint.info if checkpoint else None
    needs_train = args.val_size or set(args.source) != {"generator"}
    splits = (["train"] if needs_train else []) + ([] if args.val_size else ["test"])
    data = load_data(name, args.data_dir, splits=tuple(splits), val_size=args.val_size, image_size=args.image_size, info=info)
    if checkpoint:
        checkpoint.check_data(data.info)
    if "generator" in args.source:
        warn_of_seen_images(checkpoint, args.val_size)
    if "random-real" in args.source:
        fewest = int(torch.bincount(data.train.labels, minlength=data.info.num_classes).min())
        if max(args.ipc) > fewest:
            raise UsageError(f"--ipc {max(args.ipc)}: the smallest class of {name} has {fewest} training images for random-real")
    return data, checkpoint


def warn_of_seen_images(checkpoint: GanCheckpoint, val_size: int) -> None:
    """Say so where the images now held out were trained on when the checkpoint was made."""
    if val_size > (checkpoint.val_size or 0):
        seen = "unknown, taken as 0" if checkpoint.val_size is None else checkpoint.val_size
        print(
            f"warning: --val-size {val_size}: {checkpoint.path} was trained with --val-size {seen}: it has seen images held out now",
            file=sys.stderr,
        )


def fingerprint(info: DataInfo, images: ImageSet | None) -> str | None:
    """A short hash of a set and of its normalisation, so that rows of different images are never taken for one."""
    if images is None:
        return None
    digest = hashlib.sha256(repr(info).encode())
    for tensor in (images.images, images.labels):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]


@cli
def main(args: argparse.Namespace) -> list[dict]:
    networks = list(dict.fromkeys(network_name(name) for name in args.eval_model))
    recipe = recipe_of(args)
    runtime = make_runtime(args.device, args.amp, args.channels_last)
    folder = run_path(args.results_dir, args.tag)
    data, checkpoint = load_inputs(args)
    generator = runtime.place(checkpoint.generator()) if "generator" in args.source else None
    tested, trained = fingerprint(data.info, data.referee[1]), fingerprint(data.info, data.train)
    data = data.to(runtime.device)
    origin = {
        "generator_parameters": sum(p.numel() for p in generator.parameters()) if generator else None,
        "generator_bytes": num_bytes(generator) if generator else None,
        "checkpoint_sha256": file_hash(checkpoint.path) if generator else None,
    }
    shared = {
        "dataset": data.info.name,
        "split": data.referee[0],
        "val_size": args.val_size,
        "tested_on": tested,
        "budget": args.budget,
        "recipe": args.recipe,
        **asdict(recipe),
        "seed": args.seed,
        "amp": runtime.amp,
        **environment(runtime.device),
    }
    rows = []
    make_folder(folder)
    with locked(folder):
        results = ResultsFile(folder)
        for network in networks:
            for ipc in dict.fromkeys(args.ipc):
                for source in dict.fromkeys(args.source):
                    settings = {**shared, "classifier": network, "source": source, "ipc": ipc}
                    settings |= origin if source == "generator" else {**dict.fromkeys(origin), "drawn_from": trained}
                    row = results.row(settings)
                    for repeat in range(row["n"], args.repeats):
                        seed = derive_seed(args.seed, network, ipc, repeat)
                        results.add(row, *validate_once(network, source, args.budget, ipc, data, generator, recipe, seed, runtime))
                    rows.append(row)
    print_table(rows)
    print(results.path)
    return rows


if __name__ == "__main__":
    main(parse_args())
