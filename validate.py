"""Stage 3: train fresh classifiers on generated images alone, or on anyone's distilled set, and test them on real ones.

    python validate.py --tag test --pretrain-weight results/match/last.pth
    python validate.py --tag test --source file random-real herding --file res_DM_CIFAR10_ConvNet_10ipc.pt --budget fixed

Prints a table and adds its rows to results/TAG/results.json, from which figs/make_figures.py draws. The reported accuracy is that
of the last epoch, in eval mode, as mean and sample standard deviation over `--repeats` classifiers. Stopped, the same command goes
on with the classifiers it was at.
"""

import argparse
import contextlib
import copy
import hashlib
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

import data as datasets
from augment import COMPOSITIONS, choose_operations, draw_cutmix, draw_operations, parse_strategy
from data import DATASETS, Data, DataInfo, ImageSet, fingerprint, load_data
from distilled import RANGES, DistilledSet, read_distilled
from models import (
    Classifier,
    GanCheckpoint,
    SavedClassifier,
    build_classifier,
    network_name,
    read_classifier,
    read_gan,
    save_classifier,
)
from results import RESULTS, Cost, Outcome, ResultsFile, print_table
from run_folder import make_folder, run_path
from runtime import Draws, Lanes, Losses, Runtime, Stopwatch, device_name, make_runtime, make_sgd, set_rate
from sources import Generated, Real, Teacher
from storage import BYTES
from table import LABELS, Deployed, Table, export, keep_samples
from utils import (
    Parser,
    UsageError,
    cli,
    count,
    derive_seed,
    environment,
    eval_mode,
    follow,
    jpeg_quality,
    locked,
    positive,
    positive_int,
    probability,
    probability_or_off,
    seeded,
    tell,
)

SOURCES = ("generator", "real", "random-real", "herding", "file")
BUDGETS = ("stream", "fixed")


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
    ema: float = 0.0  # decay of the average of the weights that is tested; 0 = the weights themselves

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch."""
        if self.lr_decay == "cosine":
            return self.lr * (1 + math.cos(math.pi * epoch / self.epochs)) / 2
        return self.lr * (0.1 if self.lr_decay == "half" and epoch >= self.epochs // 2 else 1)


RECIPES = {
    # arXiv:2303.04707 and its code
    "dim": Recipe(1000, 128, 0.01, "none", "color_crop", "dim", -1.0),
    # what the condensation papers evaluate with since DSA (arXiv:2102.08259)
    "dc": Recipe(1000, 256, 0.01, "half", "color_crop_cutout_flip_scale_rotate", "dc", -1.0),
    # what classifiers are trained with today; it flips where that leaves the class as it is
    "strong": Recipe(1000, 128, 0.01, "cosine", "flip_color_crop", "dim", 0.5, 0.99),
}


def make_recipe(name: str, dataset: str, **given) -> Recipe:
    """The recipe of that name for the images of `dataset`, with the values that are given and not None in its place."""
    recipe = RECIPES[name]
    if name == "strong" and not (dataset in DATASETS and DATASETS[dataset].flip):
        recipe = replace(recipe, dsa_strategy=recipe.dsa_strategy.removeprefix("flip_"))
    recipe = replace(recipe, **{name: value for name, value in given.items() if value is not None})
    parse_strategy(recipe.dsa_strategy)
    return recipe


def train_steps(
    classifier: Classifier,
    epochs_of_images: Iterator[tuple[Tensor, Tensor]],
    recipe: Recipe,
    draws: Draws,
    runtime: Runtime,
    after_epoch: Callable[[int, nn.Module, Cost], None] | None = None,
) -> Iterator[Cost]:
    """Train `classifier` in place for recipe.epochs passes, each over the next epoch of images; one yield a step.

    Batches are min(batch size, images available); the last partial batch is used. Yields the cost so far, in which
    seconds_train is left to the caller. after_epoch(epochs done, what would be tested, cost) is not part of the training. Raises ValueError
    for zero steps.
    """
    parameters = list(classifier.parameters())
    optimizer = make_sgd(parameters, recipe.lr)
    average = copy.deepcopy(classifier).requires_grad_(False) if recipe.ema else None
    averaged_steps = torch.zeros((), device=parameters[0].device)

    def step(images: Tensor, y: Tensor, operations: tuple[str, ...], mix: bool) -> Losses:
        loss = classifier_loss(classifier, images, y, operations, mix, draws.device, runtime)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if average is not None:
            follow(average, classifier, averaged_steps, recipe.ema)
        return {}

    step = runtime.graphed(step, draws.device)
    cost, generating, testing = Cost(), Stopwatch(runtime.device), Stopwatch(runtime.device)
    classifier.train()
    for epoch in range(recipe.epochs):
        set_rate(optimizer, recipe.rate(epoch))
        with generating:
            images, labels = next(epochs_of_images)
        for index in torch.randperm(len(labels), device=labels.device, generator=draws.device).split(recipe.batch_size):
            operations = choose_operations(recipe.dsa_strategy, recipe.dsa_composition, draws.host)
            mix = recipe.mix_p > 0 and float(torch.rand((), generator=draws.host)) < recipe.mix_p
            step(images[index], labels[index], operations=operations, mix=mix)
            cost.steps += 1
            cost.images_seen += len(index)
            yield cost
        if after_epoch is not None:
            with testing:
                after_epoch(epoch + 1, classifier if average is None else average, cost)
    if cost.steps == 0:
        raise ValueError("a classifier was trained for zero steps")
    if average is not None:
        classifier.load_state_dict(average.state_dict())
    cost.seconds_generate, cost.seconds_test = generating.seconds(), testing.seconds()


def classifier_loss(
    classifier: Classifier, images: Tensor, y: Tensor, operations: tuple[str, ...], mix: bool, rng: torch.Generator, runtime: Runtime
) -> Tensor:
    """Cross-entropy on an augmented batch (B, C, H, W) of labels y (B,) or soft (B, K), each image with its own parameters of `operations`.

    mix: CutMix after them.
    """
    n, side, device = len(images), images.shape[-1], images.device
    augment = draw_operations(operations, n, side, device, rng)
    if not mix:
        with runtime.autocast():
            logits = runtime.call(classifier, images, augment)
        return F.cross_entropy(logits, y)
    cutmix, partner, share = draw_cutmix(n, side, device, rng)
    with runtime.autocast():
        logits = runtime.call(classifier, images, augment.then(cutmix))
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
        cost.seconds_generate, cost.seconds_test = cost.seconds_generate / lanes.overlap, cost.seconds_test / lanes.overlap
        cost.seconds_train = max(0.0, seconds - cost.seconds_generate - cost.seconds_test)
    return last


@torch.no_grad()
def confusion_matrix(classifier: nn.Module, images: ImageSet, num_classes: int, batch_size: int = 1000) -> Tensor:
    """How many images of class i are taken for class j, (K, K), in eval mode."""
    counts = torch.zeros(num_classes * num_classes, dtype=torch.long, device=images.labels.device)
    with eval_mode(classifier):
        for index in torch.arange(len(images), device=images.labels.device).split(batch_size):
            x, y = images.batch(index)
            counts += torch.bincount(y * num_classes + classifier(x).argmax(1), minlength=len(counts))
    return counts.view(num_classes, num_classes)


def accuracy(confusion: Tensor) -> float:
    """Percent classified right."""
    return 100 * confusion.trace().item() / confusion.sum().item()


def curve_epochs(epochs: int, points: int) -> list[int]:
    """Up to `points` numbers of epochs after which a curve is tested, evenly spaced in their logarithm, the last epoch among them."""
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
    """Train a fresh classifier on `source` (see sources.py) from each seed, side by side, and test it on data.referee.

    keep(classifier, seed) is called with each when it is trained. curve: how often it is tested on the way. A result depends on its seed
    alone. The surrounding random numbers stay as they were, so that evaluating more often does not change a training. Sources
    share the initialisation of their classifiers.
    """
    num_classes, tested = data.info.num_classes, curve_epochs(recipe.epochs, curve) if curve else []
    classifiers, trainings, outcomes = [], [], []

    def test(classifier: nn.Module) -> Tensor:
        return confusion_matrix(classifier, data.referee[1], num_classes)

    def on_the_way(outcome: Outcome) -> Callable[[int, nn.Module, Cost], None]:
        def after_epoch(epoch: int, classifier: nn.Module, cost: Cost) -> None:
            if epoch in tested:
                outcome.curve.append((cost.images_seen, accuracy(test(classifier))))

        return after_epoch

    for seed in seeds:
        with seeded(runtime.device, seed, "init"):
            classifiers.append(runtime.place(build_classifier(network, data.info)))
        draws = Draws.seeded(seed, runtime.device)
        epochs, num_images, stored = source.open(seed, draws)
        outcomes.append(Outcome(0.0, Cost(), num_images=num_images, num_bytes=stored))
        trainings.append(train_steps(classifiers[-1], epochs, recipe, draws, runtime, on_the_way(outcomes[-1]) if curve else None))
    total_steps = recipe.epochs * math.ceil(source.per_epoch / recipe.batch_size)
    costs = train_together(trainings, total_steps, runtime, title=title or network)
    for classifier, seed, outcome, cost in zip(classifiers, seeds, outcomes, costs, strict=True):
        if keep is not None:
            keep(classifier, seed)
        confusion = test(classifier)
        outcome.accuracy, outcome.cost, outcome.confusion = accuracy(confusion), cost, confusion.tolist()
    return outcomes


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
    source = Generated(generator, ipc, budget == "fixed", 0, runtime)
    jobs = [(network, seeds) for network in networks for seeds in seed_groups(seed, network, ipc, 0, repeats, None, runtime)]
    groups = runtime.spread(lambda job: validate_group(job[0], source, data, recipe, job[1], runtime), jobs)
    name = f"{data.referee[0]}_accuracy"
    means = {}
    for network in networks:
        accs = [outcome.accuracy for job, group in zip(jobs, groups, strict=True) if job[0] == network for outcome in group]
        means[f"{name}_{network}"] = statistics.mean(accs)
    return {name: statistics.mean(means.values())} | (means if len(means) > 1 else {})


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    # what is trained on
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=["generator", "random-real", "real"], help="rows of the table")
    parser.add_argument("--real", action=argparse.BooleanOptionalAction, default=True, help="always add the row of real images")
    parser.add_argument(
        "--pretrain-weight", nargs="+", help="checkpoints of stage 1 or 2, of the reference code, or .safetensors; each has rows of its own"
    )
    parser.add_argument("--mixture", action="store_true", help="several --pretrain-weight are one source, each makes a share")
    parser.add_argument("--file", nargs="+", help="distilled sets of --source file: .pt, or a folder with a folder of pictures per class")
    parser.add_argument("--image-range", choices=RANGES, help="of the values in --file, where they do not tell")
    parser.add_argument("--match-bytes", action="store_true", help="add real images, as many as fit the generator's bytes: raw, webp, jpeg")
    parser.add_argument("--quality", type=jpeg_quality, default=75, help="of the jpeg")
    parser.add_argument("--herding-epochs", type=positive_int, default=10, help="passes of the network that --source herding chooses by")
    parser.add_argument(
        "--budget",
        nargs="+",
        choices=BUDGETS,
        default=["stream"],
        help="fixed: ipc images a class, drawn once; stream: fresh ones",
    )
    parser.add_argument("--ipc", nargs="+", type=positive_int, help="images per class and epoch (default: those of --file, else 50)")
    parser.add_argument("--labels", nargs="+", choices=LABELS, help="soft: those of --teacher, rows of their own (default: as they come)")
    parser.add_argument("--teacher", help="classifier of --save-classifiers, for --labels soft and --filter")
    parser.add_argument("--temperature", type=positive, default=1.0, help="the teacher's logits are divided by it")
    # how the generator is deployed
    parser.add_argument("--storage", choices=BYTES, help="precision that it is stored, measured and scored at (default: the file's)")
    parser.add_argument("--export", help="folder to write the generator to, at --storage, and the sets drawn from it that are scored")
    parser.add_argument("--filter", type=probability, default=0.0, help="redraw images that --teacher gives their class less than this")
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
    parser.add_argument("--mix-p", type=probability_or_off, help="probability of CutMix for a batch; -1 = never (default: the recipe's)")
    parser.add_argument("--dsa-strategy", help="augmentation, such as color_crop, or none (default: the recipe's)")
    parser.add_argument("--dsa-composition", choices=COMPOSITIONS, help="how its operations combine (default: the recipe's)")
    parser.add_argument("--seed", type=count, default=0, help="of classifiers and image draws")
    parser.add_argument("--curve", type=count, default=0, help="test this often on the way, for a curve against images seen")
    # run
    parser.add_argument("--samples", type=count, default=5, help="images of each class that are kept to be looked at")
    parser.add_argument("--save-classifiers", action="store_true", help="keep the classifiers, in results/TAG/classifiers/")
    parser.add_argument("--tag", default="test", help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    parser.add_argument("--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument(
        "--amp", action=argparse.BooleanOptionalAction, help="bf16 autocast (default: where the device has bf16 instructions)"
    )
    parser.add_argument("--channels-last", action=argparse.BooleanOptionalAction, help="memory layout (default: on CUDA)")
    parser.add_argument("--graphs", action=argparse.BooleanOptionalAction, default=False, help="replay each step as one CUDA graph")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="fuse classifiers and pool networks by torch.compile"
    )
    return parser.parse_args(argv)


def check_flags(args: argparse.Namespace) -> list[str]:
    """The sources asked for, real among them. Raises UsageError for flags that need or contradict each other."""
    names, weights = list(dict.fromkeys(args.source)), args.pretrain_weight or []
    generates = "generator" in names
    if args.real and "real" not in names:
        names.append("real")
    if generates and not weights:
        raise UsageError("--source generator needs --pretrain-weight, the checkpoint of a generator")
    if ("file" in names) != bool(args.file):
        found = f"--source {' '.join(names)}" if args.file else "none"
        raise UsageError(f"--source file and --file need each other: a source, and its files; found {found}")
    if args.image_range and not args.file:
        raise UsageError(f"--image-range {args.image_range} is of the values in --file, found none")
    if not generates and (args.filter or args.storage or args.match_bytes or args.export or args.mixture):
        flag = "--filter and --storage are" if args.filter or args.storage else "--match-bytes, --export and --mixture are"
        raise UsageError(f"{flag} of --source generator, found {' '.join(names)}")
    if args.export and len(weights) != 1:
        raise UsageError(f"--export {args.export}: expected one --pretrain-weight, found {len(weights)}")
    soft = "soft" in (args.labels or [])
    if args.filter and not args.teacher:
        raise UsageError("--filter and --teacher need each other: a probability, and the classifier that gives it")
    if soft and not args.teacher:
        raise UsageError("--labels soft needs --teacher, the classifier that gives them")
    if args.teacher and not (soft or args.filter):
        raise UsageError(f"--teacher {args.teacher} is for --labels soft and --filter, found neither")
    if args.temperature != 1 and not soft:
        raise UsageError(f"--temperature {args.temperature:g} is of --labels soft, found {' '.join(args.labels or ['hard'])}")
    return names


def load_inputs(
    args: argparse.Namespace, names: list[str]
) -> tuple[Data, list[GanCheckpoint], list[DistilledSet], SavedClassifier | None, list[int]]:
    """Those splits of the set that are needed; the checkpoints, distilled sets and teacher that are given; and the numbers of images."""
    checkpoints = [read_gan(path) for path in args.pretrain_weight or []]
    first = min(checkpoints, key=lambda checkpoint: checkpoint.info is None, default=None)  # the first that names its set
    name = first.data_name(args.data) if first else args.data or "cifar10"
    info = first.info if first else None
    needs_train = args.val_size or args.match_bytes or {"real", "random-real", "herding"} & set(names)
    splits = (["train"] if needs_train else []) + ([] if args.val_size else ["test"])
    data = load_data(name, args.data_dir, splits=tuple(splits), val_size=args.val_size, image_size=args.image_size, info=info)
    for checkpoint in checkpoints:
        if checkpoint.info not in (None, data.info):
            raise UsageError(f"{checkpoint.path}: was trained on {checkpoint.info.name}, expected the {name} of {first.path}")
        checkpoint.check_data(data.info)
        if "generator" in names:
            warn_of_seen_images(checkpoint, args.val_size)
    if args.export and checkpoints[0].info is None:
        raise UsageError(f"--export {args.export}: {checkpoints[0].path} names no data set, expected a checkpoint written here")
    sets = [found for path in args.file or [] for found in read_distilled(path, data.info, args.image_range)]
    for found in sets:
        if found.soft and "hard" in (args.labels or []):
            raise UsageError(f"--labels hard: {found.path} holds soft labels")
    asked = args.ipc or ([] if sets else [50])
    ipcs = list(dict.fromkeys([*asked, *(found.ipc for found in sets)]))
    if {"random-real", "herding"} & set(names):
        fewest = int(torch.bincount(data.train.labels, minlength=data.info.num_classes).min())
        if max(ipcs) > fewest:
            wanted = " and ".join(name for name in ("random-real", "herding") if name in names)
            raise UsageError(f"--ipc {max(ipcs)}: the smallest class of {name} has {fewest} training images for {wanted}")
    teacher = read_classifier(args.teacher) if args.teacher else None
    if teacher and teacher.info != data.info:
        raise UsageError(f"--teacher {args.teacher}: was trained on {teacher.info.name}, expected a classifier of {data.info.name}")
    if teacher and args.val_size > teacher.val_size:
        seen = f"{args.teacher} was trained with --val-size {teacher.val_size}: it has seen images held out now"
        tell(f"warning: --val-size {args.val_size}: {seen}")
    return data, checkpoints, sets, teacher, ipcs


def herding_network(network: str, recipe: Recipe, data: Data, folder: Path, val_size: int, seed: int, runtime: Runtime) -> Path:
    """Train the network by whose features images are chosen on the whole training set, unless it lies in `folder`, the run's."""
    k, trained = data.info.num_classes, fingerprint(data.info, data.train.to(torch.device("cpu")))
    about = json.dumps([network, asdict(recipe), seed, trained])
    path = folder / "classifiers" / f"herding_{hashlib.sha256(about.encode()).hexdigest()[:16]}.pth"

    def train() -> None:
        make_folder(path.parent)
        source = Real(data.train, int(torch.bincount(data.train.labels, minlength=k).min()), k)

        def keep(classifier: Classifier, seed: int) -> None:
            save_classifier(path, classifier, network, data.info, val_size)

        validate_group(network, source, data, recipe, [seed], runtime, keep, title=f"{network} for herding")

    runtime.on_main(lambda: None if path.exists() else train())
    return path


def warn_of_seen_images(checkpoint: GanCheckpoint, val_size: int) -> None:
    """Say so where the images now held out were trained on when the checkpoint was made."""
    if val_size > (checkpoint.val_size or 0):
        seen = "unknown, taken as 0" if checkpoint.val_size is None else checkpoint.val_size
        tell(f"warning: --val-size {val_size}: {checkpoint.path} was trained with --val-size {seen}: it has seen images held out now")


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
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    folder = run_path(args.results_dir, args.tag)
    names = check_flags(args)
    data, checkpoints, sets, saved, ipcs = load_inputs(args, names)
    given = {"epochs": args.epochs_eval, "batch_size": args.batch_size, "lr": args.lr, "mix_p": args.mix_p}
    recipe = make_recipe(args.recipe, data.info.name, **given, dsa_strategy=args.dsa_strategy, dsa_composition=args.dsa_composition)
    teacher = Teacher.of(saved, args.teacher, args.temperature, runtime) if saved else None
    parts = [checkpoints] if args.mixture else [[checkpoint] for checkpoint in checkpoints]
    parts = parts if "generator" in names else []
    deployed = [Deployed.of(part, args.storage, args.filter, teacher, args.seed if args.export else None, runtime) for part in parts]
    tested, trained = fingerprint(data.info, data.referee[1]), fingerprint(data.info, data.train)
    data = data.to(runtime.device)
    table = Table(names, data, runtime, deployed, [found.to(runtime.device) for found in sets], teacher, args.labels, trained)
    shared = {
        "dataset": data.info.name,
        "split": data.referee[0],
        "val_size": args.val_size,
        "tested_on": tested,
        "recipe": args.recipe,
        **asdict(recipe),
        "seed": args.seed,
        "curve": args.curve or None,
        "save_classifiers": args.save_classifiers or None,  # rows of their own: those there kept none
        "amp": runtime.amp,
        "compile": runtime.compile or None,  # a row without it is of eager steps, as all were once
        **environment(runtime.device),
    }
    rows, todo = [], {}
    with contextlib.ExitStack() as held:
        runtime.on_main(lambda: (make_folder(folder), held.enter_context(locked(folder))))
        results = ResultsFile(folder, writes=runtime.is_main)
        if args.export:
            storage = args.storage or checkpoints[0].storage
            runtime.on_main(lambda: export(Path(args.export), checkpoints[0], storage, table, ipcs))
        if "herding" in names:
            whole = replace(recipe, epochs=args.herding_epochs)
            path = herding_network(networks[0], whole, data, folder, args.val_size, derive_seed(args.seed, "herding"), runtime)
            table.herd(path, max(ipcs), f"{networks[0]}, {args.herding_epochs} epochs")
        for network, ipc, budget in itertools.product(networks, ipcs, dict.fromkeys(args.budget)):
            for about, source in table.sources(ipc, budget == "fixed", args.quality if args.match_bytes else None):
                row = results.row(shared | {"classifier": network, "budget": budget, "ipc": ipc} | about)
                if any(row is other for other in rows):  # a file or checkpoint that is named twice
                    continue
                rows.append(row)
                # Only a generator's images hang on the budget: the rest is trained once for both.
                key = (network, ipc, row["n"], budget if row["source"] == "generator" else None, json.dumps(about))
                todo.setdefault(key, ([], source))[0].append(row)
        jobs = [
            (same, source, seeds)
            for (network, ipc, n, *_), (same, source) in todo.items()
            for seeds in seed_groups(args.seed, network, ipc, n, args.repeats, args.together, runtime)
        ]

        def work(job: tuple) -> list[Outcome]:
            (row, *_), source, seeds = job
            network, name = row["classifier"], f"{row['classifier']}_{row['source']}_{row['budget']}_ipc{row['ipc']}_{row_hash(row)}"
            keep = saver(folder / "classifiers", name, network, data.info, args.val_size) if args.save_classifiers else None
            title = f"{network} on {row['source']}, ipc {row['ipc']}, {row['budget']}"
            return validate_group(network, source, data, recipe, seeds, runtime, keep, args.curve, title)

        if jobs:
            tell(f"steps run on: {runtime.describe()}")
        for first in range(0, len(jobs), runtime.world_size):  # a job for each rank, then all of them are written down
            part = jobs[first : first + runtime.world_size]
            for (same, *_), group in zip(part, runtime.spread(work, part), strict=True):
                for row, outcome in itertools.product(same, group):
                    results.add(row, outcome)
        if args.samples and runtime.is_main:
            keep_samples(results, rows, table, args.samples, args.seed)
    print_table(rows)
    print(results.path)
    return rows


if __name__ == "__main__":
    main(parse_args())
