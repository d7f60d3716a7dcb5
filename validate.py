"""Stage 3: train fresh classifiers on generated images alone and test them on real ones.

    python validate.py --tag test --pretrain-weight results/match/last.pth

Prints a table and adds its rows to results/TAG/results.json. The reported accuracy is that of the last epoch, in eval
mode, as mean and sample standard deviation over `--repeats` classifiers. Stopped, the same command goes on with the
classifiers it was at.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data as datasets
from augment import COMPOSITIONS, choose_operations, draw_cutmix, draw_operations, parse_strategy
from data import Data, DataInfo, ImageSet, balanced_epochs, load_data
from models import Classifier, GanCheckpoint, build_classifier, network_name, read_classifier, read_gan, save_classifier
from models.deploy import Filtered, Several
from results import RESULTS, Cost, ResultsFile, print_table
from run_folder import make_folder, run_path
from runtime import Lanes, Losses, Runtime, Stopwatch, device_name, fused, make_runtime
from storage import BYTES, export_generator, num_bytes, store
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
    probability,
    probability_or_off,
    seeded,
    tell,
)

SOURCES = ("generator", "random-real", "real")
BUDGETS = ("stream", "fixed")
# What a row says of its generator; None where it has none, or is not filtered.
ORIGIN = ("generator_parameters", "generator_bytes", "checkpoint_sha256", "storage", "filter", "teacher", "teacher_sha256")


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


class Draws(NamedTuple):
    """The random numbers of one classifier's training: of the choices that the host makes, and of tensors on the device."""

    host: torch.Generator
    device: torch.Generator

    @classmethod
    def seeded(cls, seed: int, device: torch.device) -> "Draws":
        """Both from `seed`; on the CPU they are one stream."""
        host = torch.Generator().manual_seed(derive_seed(seed, "train"))
        return cls(host, host if device.type == "cpu" else torch.Generator(device).manual_seed(derive_seed(seed, "train")))


def image_epochs(
    source: str,
    budget: str,
    ipc: int,
    num_classes: int,
    seed: int,
    train: ImageSet | None,
    generator: nn.Module | None,
    draws: Draws,
    runtime: Runtime,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless epochs of training images (num_classes * ipc, C, H, W) in [-1, 1] and balanced labels.

    generator: fresh images at each epoch on the budget "stream", one draw for all epochs on "fixed".
    random-real: one random subset of the real images for all epochs. real: fresh real images at each epoch, on both.
    """
    if source == "generator":
        labels = torch.arange(num_classes, device=runtime.device).repeat_interleave(ipc)
        while True:
            images = generate(generator, labels, draws.device, runtime)
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
def generate(generator: nn.Module, labels: Tensor, rng: torch.Generator, runtime: Runtime, batch_size: int = 500) -> Tensor:
    """One image (N, C, H, W) in [-1, 1] for each label (N,), in eval mode, z from `rng`."""
    with eval_mode(generator), runtime.autocast():
        return torch.cat([generator.sample(part, rng) for part in labels.split(batch_size)])


def train_steps(
    classifier: Classifier, epochs_of_images: Iterator[tuple[Tensor, Tensor]], recipe: Recipe, draws: Draws, runtime: Runtime
) -> Iterator[Cost]:
    """Train `classifier` in place for recipe.epochs passes, each over the next epoch of images; one yield a step.

    Batches are min(batch size, images available); the last partial batch is used. Yields the cost so far, in which
    seconds_train is left to the caller. Raises ValueError for zero steps.
    """
    parameters = list(classifier.parameters())
    optimizer = torch.optim.SGD(parameters, lr=recipe.lr, momentum=0.9, weight_decay=5e-4, **fused(parameters))

    def step(images: Tensor, y: Tensor, operations: tuple[str, ...], mix: bool, lr: float) -> Losses:
        loss = classifier_loss(classifier, images, y, operations, mix, draws.device, runtime)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
        return {}

    step = runtime.graphed(step, draws.device)
    cost, watch = Cost(), Stopwatch(runtime.device)
    classifier.train()
    for epoch in range(recipe.epochs):
        lr = recipe.lr * (0.1 if recipe.decay_at_half and epoch >= recipe.epochs // 2 else 1)
        with watch:
            images, labels = next(epochs_of_images)
        for index in torch.randperm(len(labels), device=labels.device, generator=draws.device).split(recipe.batch_size):
            operations = choose_operations(recipe.dsa_strategy, recipe.dsa_composition, draws.host)
            mix = recipe.mix_p > 0 and float(torch.rand((), generator=draws.host)) < recipe.mix_p
            step(images[index], labels[index], operations=operations, mix=mix, lr=lr)
            cost.steps += 1
            cost.images_seen += len(index)
            yield cost
    if cost.steps == 0:
        raise ValueError("a classifier was trained for zero steps")
    cost.seconds_generate = watch.seconds()


def classifier_loss(
    classifier: Classifier, images: Tensor, y: Tensor, operations: tuple[str, ...], mix: bool, rng: torch.Generator, runtime: Runtime
) -> Tensor:
    """Cross-entropy on an augmented batch (B, C, H, W) of labels y (B,), each image with its own parameters of `operations`.

    mix: CutMix after them.
    """
    n, side, device = len(images), images.shape[-1], images.device
    augment = draw_operations(operations, n, side, device, rng)
    if not mix:
        with runtime.autocast():
            logits = classifier(images, augment)
        return F.cross_entropy(logits, y)
    cutmix, partner, share = draw_cutmix(n, side, device, rng)
    with runtime.autocast():
        logits = classifier(images, lambda x: cutmix(augment(x)))
    return share * F.cross_entropy(logits, y) + (1 - share) * F.cross_entropy(logits, y[partner])


def train_together(trainings: Sequence[Iterator[Cost]], total_steps: int, runtime: Runtime, title: str = "") -> list[Cost]:
    """Drive several train_steps in turn, a step of each, so that a device with room to spare works on all of them at once.

    Each draws its own random numbers, so that none depends on the others. Seconds are the group's, divided by its size.
    """
    lanes = Lanes(len(trainings), runtime.device)
    costs: list[Cost] = []
    start = time.perf_counter()
    bar = tqdm(total=total_steps, desc=title, unit="step", leave=False, disable=None if runtime.is_main else True, dynamic_ncols=True)
    with bar:
        while True:
            costs, last = [], costs
            for i, training in enumerate(trainings):
                with lanes[i]:
                    costs += itertools.islice(training, 1)
            if not costs:
                break
            bar.update()
    lanes.join()
    runtime.synchronize()
    seconds = (time.perf_counter() - start) / len(trainings)
    for cost in last:
        cost.seconds_generate /= lanes.overlap
        cost.seconds_train = max(0.0, seconds - cost.seconds_generate)
    return last


@torch.no_grad()
def accuracy(classifier: nn.Module, images: ImageSet, batch_size: int = 1000) -> float:
    """Percent of `images` classified right, in eval mode."""
    with eval_mode(classifier):
        correct = torch.zeros((), device=images.labels.device)
        for index in torch.arange(len(images), device=images.labels.device).split(batch_size):
            x, y = images.batch(index)
            correct += (classifier(x).argmax(1) == y).sum()
    return 100 * correct.item() / len(images)


def validate_group(
    network: str,
    source: str,
    budget: str,
    ipc: int,
    data: Data,
    generator: nn.Module | None,
    recipe: Recipe,
    seeds: Sequence[int],
    runtime: Runtime,
    keep: Callable[[Classifier, int], None] | None = None,
) -> list[tuple[float, Cost]]:
    """Train a fresh classifier from each seed, side by side, and test it on data.referee: (percent, cost) of each.

    keep(classifier, seed) is called with each when it is trained. A result depends on its seed alone. The surrounding random numbers
    stay as they were, so that evaluating more often does not change a training. Sources share the initialisation of their classifiers.
    """
    device, num_classes = runtime.device, data.info.num_classes
    classifiers, trainings = [], []
    for seed in seeds:
        with seeded(device, seed, "init"):
            classifiers.append(runtime.place(build_classifier(network, data.info)))
        draws = Draws.seeded(seed, device)
        epochs = image_epochs(source, budget, ipc, num_classes, seed, data.train, generator, draws, runtime)
        trainings.append(train_steps(classifiers[-1], epochs, recipe, draws, runtime))
    total_steps = recipe.epochs * math.ceil(num_classes * ipc / recipe.batch_size)
    costs = train_together(trainings, total_steps, runtime, title=f"{network} on {source}, ipc {ipc}")
    for classifier, seed in zip(classifiers, seeds, strict=True):
        if keep is not None:
            keep(classifier, seed)
    return [(accuracy(classifier, data.referee[1]), cost) for classifier, cost in zip(classifiers, costs, strict=True)]


def seed_groups(seed: int, network: str, ipc: int, first: int, repeats: int, together: int | None, runtime: Runtime) -> list[list[int]]:
    """The seeds of classifiers number `first` to `repeats` - 1, in the groups in which they are trained side by side.

    together: how many are; None: with CUDA graphs all that fall to a rank, else one.
    """
    seeds = [derive_seed(seed, network, ipc, i) for i in range(first, repeats)]
    size = together or (max(1, math.ceil(len(seeds) / runtime.world_size)) if runtime.graphs else 1)
    return [seeds[i : i + size] for i in range(0, len(seeds), size)]


def evaluate_generator(
    generator: nn.Module, data: Data, networks: list[str], budget: str, ipc: int, repeats: int, recipe: Recipe, seed: int, runtime: Runtime
) -> dict[str, float]:
    """The evaluation of stages 1 and 2: {"val_accuracy" or "test_accuracy": mean percent}, and each network's if several."""
    runtime.share_buffers(generator)
    jobs = [(network, seeds) for network in networks for seeds in seed_groups(seed, network, ipc, 0, repeats, None, runtime)]
    groups = runtime.spread(lambda job: validate_group(job[0], "generator", budget, ipc, data, generator, recipe, job[1], runtime), jobs)
    name = f"{data.referee[0]}_accuracy"
    means = {}
    for network in networks:
        accs = [acc for job, group in zip(jobs, groups, strict=True) if job[0] == network for acc, _ in group]
        means[f"{name}_{network}"] = statistics.mean(accs)
    return {name: statistics.mean(means.values())} | (means if len(means) > 1 else {})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what is trained on
    parser.add_argument(
        "--pretrain-weight",
        nargs="+",
        help="checkpoint of stage 1 or 2, of the reference code, or .safetensors; of several each makes a share",
    )
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=list(SOURCES), help="rows of the table")
    parser.add_argument(
        "--budget", choices=BUDGETS, default="stream", help="fixed: ipc images a class, drawn once; stream: fresh at each epoch"
    )
    parser.add_argument("--ipc", nargs="+", type=positive_int, default=[50], help="images per class and epoch")
    # how the generator is deployed
    parser.add_argument("--storage", choices=BYTES, help="precision that it is stored, measured and scored at (default: the file's)")
    parser.add_argument("--export", help="folder to write generator.safetensors to, at --storage")
    parser.add_argument("--filter", type=probability, default=0.0, help="redraw images that --teacher gives their class less than this")
    parser.add_argument("--teacher", help="classifier of --save-classifiers that judges for --filter; its bytes count")
    # data
    parser.add_argument("--data", choices=datasets.NAMES, help="image set (default: the checkpoint's, or cifar10)")
    parser.add_argument("--data-dir", default="datasets", help="where its files lie or are downloaded to; for folder, PATH")
    parser.add_argument("--image-size", type=int, choices=(28, 32), help="pixels of --data folder (default 32)")
    parser.add_argument("--val-size", type=count, default=0, help="test on this many held-out training images instead of the test set")
    # classifiers
    parser.add_argument("--eval-model", nargs="+", default=["convnet"], help="networks to train")
    parser.add_argument("--repeats", type=positive_int, default=5, help="classifiers for each row")
    parser.add_argument("--together", type=positive_int, help="trained side by side (default: all of a row with --graphs, else 1)")
    parser.add_argument("--recipe", choices=RECIPES, default="dim", help="sets those of the flags below that are not given")
    parser.add_argument("--epochs-eval", type=positive_int, help="epochs of a classifier (default: the recipe's, 1000)")
    parser.add_argument("--batch-size", type=positive_int, help="(default: the recipe's, 128 or 256)")
    parser.add_argument("--lr", type=positive, help="learning rate (default: the recipe's, 0.01)")
    parser.add_argument("--mix-p", type=probability_or_off, default=-1.0, help="probability of CutMix for a batch; -1 = never")
    parser.add_argument("--dsa-strategy", help="augmentation, such as color_crop, or none (default: the recipe's)")
    parser.add_argument("--dsa-composition", choices=COMPOSITIONS, help="how its operations combine (default: the recipe's)")
    parser.add_argument("--seed", type=count, default=0, help="of classifiers and image draws")
    # run
    parser.add_argument("--save-classifiers", action="store_true", help="keep the classifiers, in results/TAG/classifiers/")
    parser.add_argument("--tag", default="test", help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--amp", action=argparse.BooleanOptionalAction, help="bf16 autocast (default: on CUDA)")
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (default: on CUDA)")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=False, help="replay each step as one CUDA graph")
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


def load_inputs(args: argparse.Namespace) -> tuple[Data, list[GanCheckpoint]]:
    """The checkpoints, if any are given, and those splits of their set that are needed."""
    if "generator" in args.source and args.pretrain_weight is None:
        raise UsageError("--source generator needs --pretrain-weight, the checkpoint of a generator")
    checkpoints = [read_gan(path) for path in args.pretrain_weight or []]
    first = min(checkpoints, key=lambda checkpoint: checkpoint.info is None, default=None)  # the first that names its set
    name = first.data_name(args.data) if first else args.data or "cifar10"
    info = first.info if first else None
    needs_train = args.val_size or set(args.source) != {"generator"}
    splits = (["train"] if needs_train else []) + ([] if args.val_size else ["test"])
    data = load_data(name, args.data_dir, splits=tuple(splits), val_size=args.val_size, image_size=args.image_size, info=info)
    for checkpoint in checkpoints:
        if checkpoint.info not in (None, data.info):
            raise UsageError(f"{checkpoint.path}: was trained on {checkpoint.info.name}, expected the {name} of {first.path}")
        checkpoint.check_data(data.info)
    if args.export and checkpoints[0].info is None:
        raise UsageError(f"--export {args.export}: {checkpoints[0].path} names no data set, expected a checkpoint written here")
    if "generator" in args.source:
        for checkpoint in checkpoints:
            warn_of_seen_images(checkpoint, args.val_size)
    if "random-real" in args.source:
        fewest = int(torch.bincount(data.train.labels, minlength=data.info.num_classes).min())
        if max(args.ipc) > fewest:
            raise UsageError(f"--ipc {max(args.ipc)}: the smallest class of {name} has {fewest} training images for random-real")
    return data, checkpoints


def deploy(args: argparse.Namespace, checkpoints: list[GanCheckpoint], info: DataInfo) -> tuple[nn.Module, dict]:
    """The generator to score, on the CPU, at --storage, several as one, filtered; and what its rows say of it."""
    storages = [args.storage or checkpoint.storage for checkpoint in checkpoints]
    stored = [store(checkpoint.generator(), storage) for checkpoint, storage in zip(checkpoints, storages, strict=True)]
    size = sum(num_bytes(generator, storage) for generator, storage in zip(stored, storages, strict=True))
    generator = Several(stored) if len(stored) > 1 else stored[0]
    hashes = [file_hash(checkpoint.path) for checkpoint in checkpoints]
    origin = dict.fromkeys(ORIGIN) | {
        "generator_parameters": sum(p.numel() for p in generator.parameters()),
        "generator_bytes": size,
        "checkpoint_sha256": hashes[0] if len(hashes) == 1 else hashes,
        "storage": storages[0] if len(set(storages)) == 1 else storages,
    }
    if args.filter:
        saved = read_classifier(args.teacher)
        if saved.info != info:
            raise UsageError(f"--teacher {args.teacher}: was trained on {saved.info.name}, expected a classifier of {info.name}")
        if args.val_size > saved.val_size:
            seen = f"{args.teacher} was trained with --val-size {saved.val_size}: it has seen images held out now"
            tell(f"warning: --val-size {args.val_size}: {seen}")
        generator = Filtered(generator, saved.classifier, args.filter)
        origin |= {"filter": args.filter, "teacher": saved.network, "teacher_sha256": file_hash(args.teacher)}
        origin |= {"generator_bytes": size + num_bytes(saved.classifier)}
    return generator, origin


def warn_of_seen_images(checkpoint: GanCheckpoint, val_size: int) -> None:
    """Say so where the images now held out were trained on when the checkpoint was made."""
    if val_size > (checkpoint.val_size or 0):
        seen = "unknown, taken as 0" if checkpoint.val_size is None else checkpoint.val_size
        tell(f"warning: --val-size {val_size}: {checkpoint.path} was trained with --val-size {seen}: it has seen images held out now")


def fingerprint(info: DataInfo, images: ImageSet | None) -> str | None:
    """A short hash of a set and of its normalisation, so that rows of different images are never taken for one."""
    if images is None:
        return None
    digest = hashlib.sha256(repr(info).encode())
    for tensor in (images.images, images.labels):
        digest.update(tensor.contiguous().numpy())
    return digest.hexdigest()[:16]


def export(folder: Path, checkpoint: GanCheckpoint, storage: str | None) -> None:
    """Write the generator as it is shipped."""
    make_folder(folder)
    export_generator(folder / "generator.safetensors", checkpoint, storage or checkpoint.storage)


def row_hash(row: dict) -> str:
    """A short name of a row's settings, so that the classifiers of two rows are never taken for each other."""
    settings = {name: value for name, value in row.items() if name not in RESULTS}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def saver(folder: Path, stem: str, network: str, info: DataInfo, val_size: int) -> Callable[[Classifier, int], None]:
    """keep() of validate_group that writes folder/STEM_SEED.pth."""
    make_folder(folder)
    return lambda classifier, seed: save_classifier(folder / f"{stem}_{seed:016x}.pth", classifier, network, info, val_size)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    networks = list(dict.fromkeys(network_name(name) for name in args.eval_model))
    recipe = recipe_of(args)
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs)
    folder = run_path(args.results_dir, args.tag)
    if bool(args.filter) != bool(args.teacher):
        raise UsageError("--filter and --teacher need each other: a probability, and the classifier that gives it")
    if "generator" not in args.source and (args.filter or args.storage):
        raise UsageError(f"--filter and --storage are of --source generator, found {' '.join(args.source)}")
    if args.export and len(args.pretrain_weight or []) != 1:
        raise UsageError(f"--export {args.export}: expected one --pretrain-weight, found {len(args.pretrain_weight or [])}")
    data, checkpoints = load_inputs(args)
    generator, origin = deploy(args, checkpoints, data.info) if "generator" in args.source else (None, {})
    generator = generator and runtime.place(generator)
    tested, trained = fingerprint(data.info, data.referee[1]), fingerprint(data.info, data.train)
    data = data.to(runtime.device)
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
    rows, jobs = [], []
    with contextlib.ExitStack() as held:
        runtime.on_main(lambda: (make_folder(folder), held.enter_context(locked(folder))))
        results = ResultsFile(folder, writes=runtime.is_main)
        if args.export:
            runtime.on_main(lambda: export(Path(args.export), checkpoints[0], args.storage))
        for network in networks:
            for ipc in dict.fromkeys(args.ipc):
                for source in dict.fromkeys(args.source):
                    settings = {**shared, "classifier": network, "source": source, "ipc": ipc}
                    settings["save_classifiers"] = args.save_classifiers or None  # rows of their own: those there kept none
                    settings |= origin if source == "generator" else {**dict.fromkeys(ORIGIN), "drawn_from": trained}
                    row = results.row(settings)
                    rows.append(row)
                    groups = seed_groups(args.seed, network, ipc, row["n"], args.repeats, args.together, runtime)
                    jobs += [(row, network, source, ipc, seeds) for seeds in groups]

        def work(job: tuple) -> list[tuple[float, Cost]]:
            row, network, source, ipc, seeds = job
            name = f"{network}_{source}_{args.budget}_ipc{ipc}_{row_hash(row)}"
            keep = saver(folder / "classifiers", name, network, data.info, args.val_size) if args.save_classifiers else None
            return validate_group(network, source, args.budget, ipc, data, generator, recipe, seeds, runtime, keep)

        for first in range(0, len(jobs), runtime.world_size):  # a job for each rank, then all of them are written down
            part = jobs[first : first + runtime.world_size]
            for (row, *_), group in zip(part, runtime.spread(work, part), strict=True):
                for acc, cost in group:
                    results.add(row, acc, cost)
    print_table(rows)
    print(results.path)
    return rows


if __name__ == "__main__":
    main(parse_args())
