"""Stage 3: train fresh classifiers on generated images alone, or on anyone's distilled set, and test them on real ones.

    python validate.py --tag test --pretrain-weight results/match/last.pth
    python validate.py --tag test --source file random-real herding --file res_DM_CIFAR10_ConvNet_10ipc.pt --budget fixed

Prints a table and adds its rows to results/TAG/results.json, from which figs/make_figures.py draws. The reported accuracy is that
of the last epoch, in eval mode, as mean and sample standard deviation over `--repeats` classifiers. Stopped, the same command goes
on with the classifiers it was at.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during the imports ends the process at once, without a traceback

import torch

import data as datasets
from augment import COMPOSITIONS
from data import Data, DataInfo, fingerprint, load_data
from engine.environment import environment
from engine.files import locked, make_folder, run_path
from engine.runtime import add_execution_flags, make_runtime
from engine.seeds import derive_seed
from models import Classifier, GanCheckpoint, SavedClassifier, describe_networks, network_name, read_classifier, read_gan, save_classifier
from scoring.distilled import RANGES, DistilledSet, read_distilled
from scoring.evaluation import BUDGETS, seed_groups, validate_group, warn_of_seen_images
from scoring.exporting import earlier_export, export
from scoring.recipes import RECIPES, make_recipe
from scoring.results import RESULTS, Outcome, ResultsFile, print_table
from scoring.sources import Teacher
from scoring.storage import BYTES
from scoring.table import EFFECTS, LABELS, SOURCES, Deployed, Table, keep_samples
from scoring.teachers import trained_classifier
from utils import (
    Parser,
    UsageError,
    cli,
    count,
    jpeg_quality,
    positive,
    positive_int,
    probability,
    probability_or_off,
    seed_number,
    tell,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0], EFFECTS)
    # what is trained on
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=["generator", "random-real", "real"], help="images to train on")
    parser.add_argument(
        "--real", action=argparse.BooleanOptionalAction, default=True, help="add the row of real images even if --source does not name it"
    )
    parser.add_argument(
        "--pretrain-weight", nargs="+", help="checkpoints of stage 1 or 2, of the reference code, or .safetensors; each gets its own rows"
    )
    parser.add_argument("--mixture", action="store_true", help="use all --pretrain-weight as one source; each generates an equal share")
    parser.add_argument("--file", nargs="+", help="distilled sets for --source file: .pt, or a folder with a picture folder per class")
    parser.add_argument("--image-range", choices=RANGES, help="range of the values in --file, if the values do not determine it")
    parser.add_argument(
        "--match-bytes", action="store_true", help="add as many real images as fit into the generator's bytes: raw, webp, jpeg"
    )
    parser.add_argument("--quality", type=jpeg_quality, default=75, help="JPEG quality of --match-bytes")
    parser.add_argument("--herding-epochs", type=positive_int, default=10, help="training epochs of the network of --source herding")
    parser.add_argument(
        "--budget",
        nargs="+",
        choices=BUDGETS,
        default=["stream"],
        help="fixed: ipc images per class, drawn once; stream: drawn anew at each epoch",
    )
    parser.add_argument(
        "--ipc", nargs="+", type=positive_int, help="images per class in an epoch of a classifier (default: as in --file, else 50)"
    )
    parser.add_argument("--labels", nargs="+", choices=LABELS, help="soft: rows with labels of --teacher (default: the images' own labels)")
    parser.add_argument("--teacher", help="file of a classifier, from --save-classifiers, for --labels soft and --filter")
    parser.add_argument("--temperature", type=positive, default=1.0, help="divisor of the logits of --teacher")
    # how the generator is deployed
    parser.add_argument(
        "--storage", choices=BYTES, help="precision at which the generator is stored, measured and scored (default: the file's)"
    )
    parser.add_argument(
        "--export", help="folder for the generator at --storage and for the scored sets drawn from it; an earlier export there is replaced"
    )
    parser.add_argument(
        "--filter", type=probability, default=0.0, help="redraw an image if --teacher gives its class less than this probability"
    )
    # data
    parser.add_argument("--data", choices=datasets.NAMES, help="image set (default: the checkpoint's, or cifar10)")
    parser.add_argument("--data-dir", default="datasets", help="where the set lies or is downloaded to (--data folder: train/ and test/)")
    parser.add_argument("--image-size", type=int, choices=(28, 32), help="side of the images of --data folder in pixels (default 32)")
    parser.add_argument("--val-size", type=count, default=0, help="test on this many held-out training images instead of the test set")
    # classifiers
    parser.add_argument("--eval-model", nargs="+", default=["convnet"], help="networks to train")
    parser.add_argument("--repeats", type=positive_int, default=5, help="number of classifiers for each row")
    parser.add_argument(
        "--together", type=positive_int, help="classifiers trained side by side (default: all of a row with --graphs, else 1)"
    )
    parser.add_argument("--recipe", choices=RECIPES, default="dim", help="how a classifier is trained; flags below override it")
    parser.add_argument("--epochs-eval", type=positive_int, help="epochs of a classifier (default: the recipe's, 1000)")
    parser.add_argument("--batch-size", type=positive_int, help="images per step (default: the recipe's, 128 or 256)")
    parser.add_argument("--lr", type=positive, help="learning rate (default: the recipe's, 0.01)")
    parser.add_argument("--mix-p", type=probability_or_off, help="probability of CutMix for a batch; -1 = never (default: the recipe's)")
    parser.add_argument("--dsa-strategy", help="augmentation, such as color_crop, or none (default: the recipe's)")
    parser.add_argument("--dsa-composition", choices=COMPOSITIONS, help="how its operations combine (default: the recipe's)")
    parser.add_argument("--seed", type=seed_number, default=0, help="seed of the classifiers and of the images drawn")
    parser.add_argument("--curve", type=count, default=0, help="number of tests during training, for a curve against images seen")
    # run
    parser.add_argument("--samples", type=count, default=5, help="example images of each class kept in the results")
    parser.add_argument("--save-classifiers", action="store_true", help="keep the classifiers, in results/TAG/classifiers/")
    parser.add_argument("--tag", default="test", help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    add_execution_flags(parser)
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
    if args.export:
        earlier_export(Path(args.export))
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
    networks = list(dict.fromkeys(network_name(name, "--eval-model") for name in args.eval_model))
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
            seed = derive_seed(args.seed, "herding")
            path = trained_classifier("herding", networks[0], whole, data, folder, args.val_size, seed, runtime)
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
            steps = sum(recipe.epochs * math.ceil(source.per_epoch / recipe.batch_size) * len(seeds) for _, source, seeds in jobs)
            generators = {f"generator {i}": one.generator for i, one in enumerate(deployed, 1)}
            number = sum(len(seeds) for *_, seeds in jobs)
            tell(data.describe())
            tell(describe_networks(networks, data.info, **generators))
            tell(f"steps: {steps:,} in all, {number:,} classifiers of {recipe.epochs:,} epochs")
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
