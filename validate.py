"""Stage 3: train fresh classifiers on a generator or on a distilled set, and test them on real images.

    python validate.py --tag test --pretrain-weight results/match/last.pth
    python validate.py --tag mine --file res_DM_CIFAR10_ConvNet_10ipc.pt --budget fixed --recipe dc

Prints a table and adds its rows to results/TAG/results.json, from which figs/make_figures.py draws. The
reported accuracy is that of the last epoch, in eval mode, as mean and sample standard deviation over
`--repeats` classifiers. Stopped, the same command goes on with the classifiers it was at.
"""

import argparse
import contextlib
import itertools
import json
import math
import signal
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # Ctrl-C during the imports ends the process at once, without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from data import Data, add_data_flags, fingerprint
from engine.environment import environment
from engine.files import locked, make_folder, run_path
from engine.runtime import Runtime, add_execution_flags, make_runtime
from engine.seeds import derive_seed
from models import Classifier, describe_networks, network_name, save_classifier
from models.condense import Condensing, add_condense_flags
from scoring.condensed import CondensedSets
from scoring.drawing import DRAWS, MatchedSets
from scoring.evaluation import BUDGETS, add_classifier_flags, seed_groups, validate_group
from scoring.exporting import export
from scoring.herding import HerdedSets
from scoring.inputs import EFFECTS, fillers_of, load_inputs, sources_of
from scoring.labels import LABEL_KINDS
from scoring.recipes import Recipe, make_recipe
from scoring.results import SOURCES, Outcome, ResultsFile, print_table, row_hash
from scoring.sources import Teacher
from scoring.storage import BYTES, CODECS
from scoring.table import FILLERS, LABELS, Deployed, Listed, Table, keep_samples
from scoring.teachers import TrainedClassifier
from scoring.values import RANGES
from utils import (
    Parser,
    cli,
    count,
    jpeg_quality,
    out_of_memory_hint,
    positive,
    positive_int,
    probability,
    seed_number,
    tell,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0], EFFECTS)
    parser.usage = "%(prog)s [flags]"
    add = parser.add_argument
    # what is trained on
    add(
        "--source",
        nargs="+",
        choices=SOURCES,
        metavar="KIND",
        help=f"images to train on: {', '.join(SOURCES)} (default: generator or file, random-real, real)",
    )
    add(
        "--real",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="add the row real if --source does not name it",
    )
    add(
        "--pretrain-weight",
        nargs="+",
        metavar="FILE",
        help="checkpoints of stage 1 or 2, of the reference code, or .safetensors: a row each",
    )
    add(
        "--file",
        nargs="+",
        metavar="FILE",
        help="distilled sets: .pt, .npz, .npy, or a folder of class folders",
    )
    add(
        "--image-range",
        choices=RANGES,
        help="range of the values in --file, if the values do not determine it",
    )
    add(
        "--label-kind",
        choices=LABEL_KINDS,
        help="what the labels in --file are (default: classes or probabilities)",
    )
    add(
        "--factor",
        type=positive_int,
        default=1,
        help="each image in --file is a collage of N x N others",
    )
    add("--group", help="average all sets in --file (default: the sets of one file)")
    add(
        "--match-bytes",
        nargs="*",
        choices=FILLERS,
        metavar="KIND",
        help=f"rows of as many images as the generator's bytes hold: {', '.join(FILLERS)} (default without a "
        "value: real images by each codec)",
    )
    add("--codec", choices=CODECS, default="raw", help="how condensed images are stored")
    add("--quality", type=jpeg_quality, default=75, help="JPEG quality of --match-bytes and --codec")
    add(
        "--herding-epochs",
        type=positive_int,
        default=10,
        help="training epochs of the network of --source herding",
    )
    add(
        "--budget",
        nargs="+",
        choices=BUDGETS,
        default=["stream"],
        metavar="KIND",
        help="a generator's images: fixed, or a stream of new ones (default: stream)",
    )
    add(
        "--ipc",
        nargs="+",
        type=positive_int,
        help="images per class in an epoch of a classifier (default: as in --file, else 50)",
    )
    add("--labels", nargs="+", choices=LABELS, help="soft: labels of --teacher (default: the images' own)")
    add(
        "--teacher",
        metavar="FILE",
        help="a classifier that --save-classifiers kept, for --labels soft and --filter",
    )
    add("--temperature", type=positive, default=1.0, help="divisor of the logits of --teacher")
    add_condense_flags(parser)
    # how the generator is deployed
    add("--storage", choices=BYTES, help="precision of the generator's weights (default: the file's)")
    add(
        "--draw",
        choices=DRAWS,
        default="random",
        help="latents of a fixed set; matched: optimised",
    )
    add("--draw-steps", type=positive_int, default=200, help="steps of --draw matched")
    add(
        "--export",
        help="write the generator at --storage and the scored sets; an earlier export there is replaced",
    )
    add(
        "--filter",
        type=probability,
        default=0.0,
        help="redraw images whose class gets a lower probability from --teacher",
    )
    # data
    add_data_flags(parser)
    # classifiers
    add_classifier_flags(parser, repeats=5)
    add(
        "--together",
        type=positive_int,
        help="classifiers trained side by side (default: all of a row with --graphs, else 1)",
    )
    add("--batch-size", type=positive_int, help="images per step (default: the recipe's, 128 or 256)")
    add("--lr", type=positive, help="learning rate (default: the recipe's, 0.01)")
    add("--dsa-strategy", help="augmentation, such as color_crop, or none (default: the recipe's)")
    add("--seed", type=seed_number, default=0, help="of the classifiers and the images drawn")
    add("--curve", type=count, default=0, help="test N times during training")
    # run
    add("--samples", type=count, default=5, help="example images of each class kept in the results")
    add("--save-classifiers", action="store_true", help="keep the classifiers in results/TAG/classifiers/")
    add("--tag", default="test", help="folder under --results-dir")
    add("--results-dir", default="results", help="where results go")
    add_execution_flags(parser)
    return parser.parse_args(argv)


class Job(NamedTuple):
    """Classifiers that are trained together: the rows of this training, its source, and their seeds."""

    rows: list[dict]
    listed: Listed
    seeds: list[int]


def plan_rows(
    args: argparse.Namespace,
    networks: list[str],
    ipcs: list[int],
    settings: dict,
    table: Table,
    results: ResultsFile,
) -> list[tuple[dict, Listed]]:
    """The rows of results that args ask for, those there or new, and the source of each."""
    planned = []
    for network, ipc, budget in itertools.product(networks, ipcs, dict.fromkeys(args.budget)):
        for listed in table.listed(ipc, budget == "fixed"):
            row = results.row(
                settings | {"classifier": network, "budget": budget, "ipc": ipc} | listed.fields
            )
            row |= {"class_names": list(table.data.info.class_names)} | listed.origin
            if not any(row is other for other, _ in planned):  # a file or checkpoint may be named twice
                planned.append((row, listed))
    return planned


def plan_jobs(args: argparse.Namespace, planned: list[tuple[dict, Listed]], runtime: Runtime) -> list[Job]:
    """The trainings that the rows still need."""
    trainings = {}
    for row, listed in planned:
        # Only a generator's images depend on the budget: other rows are trained once for both.
        budget = row["budget"] if row["source"] == "generator" else None
        key = (row["classifier"], row["ipc"], row["n"], budget, json.dumps(listed.fields))
        trainings.setdefault(key, ([], listed))[0].append(row)
    return [
        Job(rows, listed, seeds)
        for (network, ipc, n, *_), (rows, listed) in trainings.items()
        for seeds in seed_groups(args.seed, network, ipc, n, args.repeats, args.together, runtime)
    ]


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

    def work(part: tuple[Job, object]) -> list[Outcome]:
        job, source = part
        row = job.rows[0]
        network = row["classifier"]
        stem = f"{network}_{row['source']}_{row['budget']}_ipc{row['ipc']}_{row_hash(row)}"

        def keep(classifier: Classifier, seed: int) -> None:
            path = folder / "classifiers" / f"{stem}_{seed:016x}.pth"
            make_folder(path.parent)
            save_classifier(path, classifier, network, data.info, args.val_size)

        title = f"{network} on {row['source']}, ipc {row['ipc']}, {row['budget']}"
        return validate_group(
            network,
            source,
            data,
            recipe,
            job.seeds,
            runtime,
            keep if args.save_classifiers else None,
            args.curve,
            title,
        )

    # Every rank makes all sources here: what is made once may not be made inside one rank's job.
    parts = [(job, job.listed.source) for job in jobs]
    size = runtime.world_size
    for first in range(0, len(parts), size):  # a job for each rank, then all of them are written down
        now = parts[first : first + size]
        for (job, _), outcomes in zip(now, runtime.spread(work, now), strict=True):
            for row, outcome in itertools.product(job.rows, outcomes):
                results.add(row, outcome)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    networks = list(dict.fromkeys(network_name(name, "--eval-model") for name in args.eval_model))
    runtime = make_runtime(args.device, args.amp, args.channels_last, args.graphs, args.compile)
    folder = run_path(args.results_dir, args.tag)
    condensing = Condensing.of(vars(args))
    sources = sources_of(args)
    inputs = load_inputs(args)
    data = inputs.data
    recipe = make_recipe(
        args.recipe,
        data.info.name,
        epochs=args.epochs_eval,
        batch_size=args.batch_size,
        lr=args.lr,
        mix_p=args.mix_p,
        dsa_strategy=args.dsa_strategy,
    )
    settings = {
        "dataset": data.info.name,
        "split": data.evaluation_split[0],
        "val_size": args.val_size,
        "tested_on": fingerprint(data.info, data.evaluation_split[1]),
        "recipe": args.recipe,
        **asdict(recipe),
        "seed": args.seed,
        "curve": args.curve or None,
        "save_classifiers": args.save_classifiers or None,  # rows of their own: those there kept none
        "amp": runtime.amp,
        "compile": runtime.compile or None,  # a row without it is of eager steps, as all were once
        **environment(runtime.device),
    }
    trained = fingerprint(data.info, data.train)
    data = data.to(runtime.device)
    teacher = None
    if inputs.teacher:
        teacher = Teacher.of(inputs.teacher, args.teacher, args.temperature, runtime)
    shared = (folder, args.val_size, args.seed, runtime)
    matched = MatchedSets(args.draw_steps, data, trained, *shared) if args.draw == "matched" else None
    deployed = [
        Deployed.of(
            checkpoint,
            args.storage,
            args.filter,
            teacher,
            args.seed if args.export else None,
            matched,
            runtime,
        )
        for checkpoint in inputs.checkpoints
        if "generator" in sources
    ]
    table = Table(
        sources,
        fillers_of(args),
        args.quality,
        args.labels or ["hard"],
        teacher,
        data,
        trained,
        deployed,
        [one.to(runtime.device) for one in inputs.sets],
        args.group,
        CondensedSets(data, condensing, args.codec, args.quality, folder, args.seed, trained, runtime),
        HerdedSets(
            TrainedClassifier(
                "herding",
                networks[0],
                replace(recipe, epochs=args.herding_epochs),
                data,
                folder,
                args.val_size,
                derive_seed(args.seed, "herding"),
                runtime,
            )
        ),
    )
    with contextlib.ExitStack() as held:
        runtime.on_main(lambda: (make_folder(folder), held.enter_context(locked(folder))))
        results = ResultsFile(folder, writes=runtime.is_main)
        runtime.barrier()  # all have read the file before the first rank writes it
        planned = plan_rows(args, networks, inputs.ipcs, settings, table, results)
        jobs = plan_jobs(args, planned, runtime)
        if jobs:
            steps = sum(
                recipe.epochs * math.ceil(job.listed.per_epoch / recipe.batch_size) * len(job.seeds)
                for job in jobs
            )
            generators = {f"generator {i}": one.generator for i, one in enumerate(deployed, 1)}
            number = sum(len(job.seeds) for job in jobs)
            tell(data.describe())
            tell(describe_networks(networks, data.info, **generators))
            tell(f"steps: {steps:,} in all, {number:,} classifiers of {recipe.epochs:,} epochs")
            tell(f"steps run on: {runtime.describe()}")
        if args.export and deployed:
            with out_of_memory_hint("--ipc"):
                drawn = {ipc: deployed[0].exported(ipc) for ipc in inputs.ipcs}
            labeller = teacher if "soft" in table.labels else None
            checkpoint = inputs.checkpoints[0]
            runtime.on_main(lambda: export(Path(args.export), checkpoint, args.storage, drawn, labeller))
        score(args, jobs, recipe, data, folder, results, runtime)
        if args.samples:
            keep_samples(results, planned, data, args.samples, args.seed)
    print_table([row for row, _ in planned])
    print(results.path)
    return [row for row, _ in planned]


if __name__ == "__main__":
    main(parse_args())
