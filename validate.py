"""Stage 3: train fresh classifiers on generated images alone, or on anyone's distilled set, and test them on
real ones.

    python validate.py --tag test --pretrain-weight results/match/last.pth
    python validate.py --tag test --source file random-real herding --file res_DM_CIFAR10_ConvNet_10ipc.pt
    --budget fixed

Prints a table and adds its rows to results/TAG/results.json, from which figs/make_figures.py draws. The
reported accuracy is that of the last epoch, in eval mode, as mean and sample standard deviation over
`--repeats` classifiers. Stopped, the same command goes on with the classifiers it was at.
"""

import argparse
import contextlib
import functools
import itertools
import json
import math
import signal
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C during the imports ends the process at once, without a traceback

import data as datasets
from augment import COMPOSITIONS
from data import Data, DataInfo, add_folder_flags, fingerprint
from engine.environment import environment
from engine.files import locked, make_folder, run_path
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.seeds import derive_seed
from models import Classifier, describe_networks, network_name, save_classifier
from models.condense import Condensing, add_condense_flags
from pool_match import train_match
from scoring.condensed import CondensedSets
from scoring.drawing import DRAW_STEPS, DRAWS, make_drawer
from scoring.evaluation import BUDGETS, seed_groups, validate_group
from scoring.exporting import export
from scoring.inputs import check_flags, load_inputs
from scoring.labels import LABEL_KINDS
from scoring.recipes import RECIPES, Recipe, make_recipe
from scoring.results import Outcome, ResultsFile, print_table, row_hash
from scoring.sources import Teacher
from scoring.storage import BYTES, CODECS
from scoring.table import EFFECTS, FILLERS, LABELS, SOURCES, Deployed, Table, fillers, keep_samples
from scoring.teachers import trained_classifier
from scoring.values import RANGES
from utils import (
    Parser,
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
    parser.add_argument(
        "--source",
        nargs="+",
        choices=SOURCES,
        default=["generator", "random-real", "real"],
        help="images to train on",
    )
    parser.add_argument(
        "--real",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add the row of real images even if --source does not name it",
    )
    parser.add_argument(
        "--pretrain-weight",
        nargs="+",
        help="checkpoints of stage 1 or 2, of the reference code, or .safetensors; each gets its own rows",
    )
    parser.add_argument(
        "--mixture",
        action="store_true",
        help="use all --pretrain-weight as one source; each generates an equal share",
    )
    parser.add_argument(
        "--file",
        nargs="+",
        help="distilled sets for --source file: .pt, .npz, .npy, or a folder with a folder per class",
    )
    parser.add_argument(
        "--image-range",
        choices=RANGES,
        help="range of the values in --file, if the values do not determine it",
    )
    parser.add_argument(
        "--label-kind",
        choices=LABEL_KINDS,
        help="what the labels in --file are (default: classes or probabilities)",
    )
    parser.add_argument(
        "--factor",
        type=positive_int,
        default=1,
        help="each image in --file is a collage of FACTOR x FACTOR smaller ones",
    )
    parser.add_argument(
        "--group",
        help="name under which all sets in --file are averaged (default: only the sets of one file)",
    )
    parser.add_argument(
        "--match-bytes",
        nargs="*",
        choices=FILLERS,
        help="add rows of as many images as fit into the generator's bytes: real ones by these codecs, or condensed "
        "ones by --codec (default without a value: real ones by each codec)",
    )
    parser.add_argument(
        "--quality",
        type=jpeg_quality,
        default=75,
        help="JPEG quality of --match-bytes and --codec jpeg, jpeg-scan",
    )
    parser.add_argument(
        "--herding-epochs",
        type=positive_int,
        default=10,
        help="training epochs of the network of --source herding",
    )
    parser.add_argument(
        "--budget",
        nargs="+",
        choices=BUDGETS,
        default=["stream"],
        help="fixed: ipc images per class, drawn once; stream: drawn anew at each epoch",
    )
    parser.add_argument(
        "--ipc",
        nargs="+",
        type=positive_int,
        help="images per class in an epoch of a classifier (default: as in --file, else 50)",
    )
    parser.add_argument(
        "--labels",
        nargs="+",
        choices=LABELS,
        help="soft: rows with labels of --teacher (default: the images' own labels)",
    )
    parser.add_argument(
        "--teacher", help="file of a classifier, from --save-classifiers, for --labels soft and --filter"
    )
    parser.add_argument(
        "--temperature", type=positive, default=1.0, help="divisor of the logits of --teacher"
    )
    add_condense_flags(parser)
    parser.add_argument(
        "--codec", choices=CODECS, default="raw", help="how the images of --source condensed are stored"
    )
    # how the generator is deployed
    parser.add_argument(
        "--storage",
        choices=BYTES,
        help="precision at which the generator is stored, measured and scored (default: the file's)",
    )
    parser.add_argument(
        "--draw",
        choices=DRAWS,
        default="random",
        help="how the latents of a fixed set are found; matched: optimised",
    )
    parser.add_argument(
        "--draw-candidates",
        type=positive_int,
        default=1000,
        help="generated images a class of --draw herding",
    )
    parser.add_argument("--draw-steps", type=positive_int, default=DRAW_STEPS, help="steps of --draw matched")
    parser.add_argument(
        "--export",
        help="folder for the generator at --storage and for the scored sets drawn from it; an earlier "
        "export there is replaced",
    )
    parser.add_argument(
        "--filter",
        type=probability,
        default=0.0,
        help="redraw an image if --teacher gives its class less than this probability",
    )
    # data
    parser.add_argument(
        "--data", choices=datasets.NAMES, help="image set (default: the checkpoint's, or cifar10)"
    )
    parser.add_argument(
        "--data-dir",
        default="datasets",
        help="where the set lies or is downloaded to (--data folder: train/ and test/)",
    )
    add_folder_flags(parser)
    parser.add_argument(
        "--val-size",
        type=count,
        default=0,
        help="test on this many held-out training images instead of the test set",
    )
    # classifiers
    parser.add_argument("--eval-model", nargs="+", default=["convnet"], help="networks to train")
    parser.add_argument("--repeats", type=positive_int, default=5, help="number of classifiers for each row")
    parser.add_argument(
        "--together",
        type=positive_int,
        help="classifiers trained side by side (default: all of a row with --graphs, else 1)",
    )
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        default="dim",
        help="how a classifier is trained; flags below override it",
    )
    parser.add_argument(
        "--epochs-eval", type=positive_int, help="epochs of a classifier (default: the recipe's, 1000)"
    )
    parser.add_argument(
        "--batch-size", type=positive_int, help="images per step (default: the recipe's, 128 or 256)"
    )
    parser.add_argument("--lr", type=positive, help="learning rate (default: the recipe's, 0.01)")
    parser.add_argument(
        "--mix-p",
        type=probability_or_off,
        help="probability of CutMix for a batch; -1 = never (default: the recipe's)",
    )
    parser.add_argument(
        "--dsa-strategy", help="augmentation, such as color_crop, or none (default: the recipe's)"
    )
    parser.add_argument(
        "--dsa-composition", choices=COMPOSITIONS, help="how its operations combine (default: the recipe's)"
    )
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="seed of the classifiers and of the images drawn"
    )
    parser.add_argument(
        "--curve",
        type=count,
        default=0,
        help="number of tests during training, for a curve against images seen",
    )
    # run
    parser.add_argument(
        "--samples", type=count, default=5, help="example images of each class kept in the results"
    )
    parser.add_argument(
        "--save-classifiers", action="store_true", help="keep the classifiers, in results/TAG/classifiers/"
    )
    parser.add_argument("--tag", default="test", help="name of the folder under --results-dir")
    parser.add_argument("--results-dir", default="results", help="where results go")
    add_execution_flags(parser)
    return parser.parse_args(argv)


def saver(
    folder: Path, stem: str, network: str, info: DataInfo, val_size: int
) -> Callable[[Classifier, int], None]:
    """keep() of validate_group that writes folder/STEM_SEED.pth."""
    make_folder(folder)
    return lambda classifier, seed: save_classifier(
        folder / f"{stem}_{seed:016x}.pth", classifier, network, info, val_size
    )


Job = tuple[
    list[dict], object, list[int]
]  # rows with one training, the source of its images, seeds of classifiers trained together


def plan_rows(
    args: argparse.Namespace,
    networks: list[str],
    ipcs: list[int],
    shared: dict,
    table: Table,
    results: ResultsFile,
    runtime: Runtime,
) -> tuple[list[dict], list[Job]]:
    """The rows of results that args ask for, found there or new, and the trainings that they need."""
    rows, todo = [], {}
    for network, ipc, budget in itertools.product(networks, ipcs, dict.fromkeys(args.budget)):
        for about, source in table.sources(
            ipc, budget == "fixed", fillers(args.match_bytes, table.names), args.quality
        ):
            row = results.row(shared | {"classifier": network, "budget": budget, "ipc": ipc} | about)
            row |= {"class_names": list(table.data.info.class_names)} | table.origin(row, args.group)
            if any(row is other for other in rows):  # a file or checkpoint that is named twice
                continue
            rows.append(row)
            # Only a generator's images hang on the budget: the rest is trained once for both.
            key = (
                network,
                ipc,
                row["n"],
                budget if row["source"] == "generator" else None,
                json.dumps(about),
            )
            todo.setdefault(key, ([], source))[0].append(row)
    jobs = [
        (same, source, seeds)
        for (network, ipc, n, *_), (same, source) in todo.items()
        for seeds in seed_groups(args.seed, network, ipc, n, args.repeats, args.together, runtime)
    ]
    return rows, jobs


def score(
    args: argparse.Namespace,
    jobs: list[Job],
    recipe: Recipe,
    data: Data,
    folder: Path,
    results: ResultsFile,
    runtime: Runtime,
) -> None:
    """Train the classifiers of `jobs`, one job a rank at a time, and write down their accuracies as they
    come."""

    def work(job: Job) -> list[Outcome]:
        (row, *_), source, seeds = job
        network, name = (
            row["classifier"],
            f"{row['classifier']}_{row['source']}_{row['budget']}_ipc{row['ipc']}_{row_hash(row)}",
        )
        keep = (
            saver(folder / "classifiers", name, network, data.info, args.val_size)
            if args.save_classifiers
            else None
        )
        title = f"{network} on {row['source']}, ipc {row['ipc']}, {row['budget']}"
        return validate_group(network, source, data, recipe, seeds, runtime, keep, args.curve, title)

    for first in range(
        0, len(jobs), runtime.world_size
    ):  # a job for each rank, then all of them are written down
        part = jobs[first : first + runtime.world_size]
        for (same, *_), group in zip(part, runtime.spread(work, part), strict=True):
            for row, outcome in itertools.product(same, group):
                results.add(row, outcome)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    networks = list(dict.fromkeys(network_name(name, "--eval-model") for name in args.eval_model))
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    folder = run_path(args.results_dir, args.tag)
    names = check_flags(args)
    how = Condensing.of(vars(args))
    data, checkpoints, sets, saved, ipcs = load_inputs(args, names)
    given = {"epochs": args.epochs_eval, "batch_size": args.batch_size, "lr": args.lr, "mix_p": args.mix_p}
    recipe = make_recipe(
        args.recipe,
        data.info.name,
        **given,
        dsa_strategy=args.dsa_strategy,
        dsa_composition=args.dsa_composition,
    )
    teacher = Teacher.of(saved, args.teacher, args.temperature, runtime) if saved else None
    parts = [checkpoints] if args.mixture else [[checkpoint] for checkpoint in checkpoints]
    parts = parts if "generator" in names else []
    deployed = [
        Deployed.of(part, args.storage, args.filter, teacher, args.seed if args.export else None, runtime)
        for part in parts
    ]
    tested, trained = fingerprint(data.info, data.evaluation_split[1]), fingerprint(data.info, data.train)
    data = data.to(runtime.device)
    table = Table(
        names,
        data,
        runtime,
        deployed,
        [found.to(runtime.device) for found in sets],
        teacher,
        args.labels,
        trained,
    )
    shared = {
        "dataset": data.info.name,
        "split": data.evaluation_split[0],
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
    with contextlib.ExitStack() as held:
        runtime.on_main(lambda: (make_folder(folder), held.enter_context(locked(folder))))
        results = ResultsFile(folder, writes=runtime.is_main)
        whole, seed = replace(recipe, epochs=args.herding_epochs), derive_seed(args.seed, "herding")
        herding = functools.partial(
            trained_classifier, "herding", networks[0], whole, data, folder, args.val_size, seed, runtime
        )
        number, by = (
            args.draw_candidates if args.draw == "herding" else args.draw_steps,
            f"{networks[0]}, {args.herding_epochs} epochs",
        )
        table.drawer = make_drawer(
            args.draw,
            number,
            herding,
            by,
            data,
            trained,
            folder,
            train_match,
            args.val_size,
            args.seed,
            runtime,
        )
        if args.export:
            for ipc in ipcs if table.drawer else []:  # here, since every rank takes part in it
                table.drawer(deployed[0].generator, deployed[0].about, ipc)
            storage = args.storage or checkpoints[0].storage
            runtime.on_main(lambda: export(Path(args.export), checkpoints[0], storage, table, ipcs))
        if "condensed" in (*names, *fillers(args.match_bytes, names)):
            table.condensed = CondensedSets(
                data, how, args.codec, args.quality, folder, args.seed, trained, runtime
            )
        if "herding" in names:
            table.herd(herding(), max(ipcs), by)
        rows, jobs = plan_rows(args, networks, ipcs, shared, table, results, runtime)
        if jobs:
            steps = sum(
                recipe.epochs * math.ceil(source.per_epoch / recipe.batch_size) * len(seeds)
                for _, source, seeds in jobs
            )
            generators = {f"generator {i}": one.generator for i, one in enumerate(deployed, 1)}
            number = sum(len(seeds) for *_, seeds in jobs)
            tell(data.describe())
            tell(describe_networks(networks, data.info, **generators))
            tell(f"steps: {steps:,} in all, {number:,} classifiers of {recipe.epochs:,} epochs")
            tell(f"steps run on: {runtime.describe()}")
        score(args, jobs, recipe, data, folder, results, runtime)
        if args.samples and runtime.is_main:
            keep_samples(results, rows, table, args.samples, args.seed)
    print_table(rows)
    print(results.path)
    return rows


if __name__ == "__main__":
    main(parse_args())
