"""What the flags of validate.py ask for: the check that they agree, and the images, checkpoints and sets that
they name."""

import argparse
from pathlib import Path

import torch

from data import Data, load_data
from models import GanCheckpoint, SavedClassifier, read_classifier, read_gan
from models.condense import check_condense_flags
from scoring.distilled import DistilledSet, read_distilled
from scoring.evaluation import warn_of_seen_images
from scoring.exporting import earlier_export
from utils import UsageError, tell


def check_flags(args: argparse.Namespace) -> list[str]:
    """The sources asked for, real among them. Raises UsageError for flags that need or contradict each
    other."""
    names, weights = list(dict.fromkeys(args.source)), args.pretrain_weight or []
    generates = "generator" in names
    if args.real and "real" not in names:
        names.append("real")
    if generates and not weights:
        raise UsageError("--source generator needs --pretrain-weight, the checkpoint of a generator")
    if ("file" in names) != bool(args.file):
        found = f"--source {' '.join(names)}" if args.file else "none"
        raise UsageError(f"--source file and --file need each other: a source, and its files; found {found}")
    for flag, given in (
        ("--image-range", args.image_range),
        ("--label-kind", args.label_kind),
        ("--group", args.group),
    ):
        if given and not args.file:
            raise UsageError(f"{flag} {given} is of the sets in --file, found none")
    if args.factor > 1 and not args.file:
        raise UsageError(f"--factor {args.factor} is of the sets in --file, found none")
    if not generates and (
        args.filter or args.storage or args.match_bytes is not None or args.export or args.mixture
    ):
        flag = (
            "--filter and --storage are"
            if args.filter or args.storage
            else "--match-bytes, --export and --mixture are"
        )
        raise UsageError(f"{flag} of --source generator, found {' '.join(names)}")
    if args.export and len(weights) != 1:
        raise UsageError(f"--export {args.export}: expected one --pretrain-weight, found {len(weights)}")
    if args.export:
        earlier_export(Path(args.export))
    if args.draw != "random" and not (generates and "fixed" in args.budget):
        raise UsageError(
            f"--draw {args.draw} is of a generator's fixed sets, expected --source generator and --budget "
            "fixed"
        )
    if args.draw == "matched" and (args.mixture or args.filter):
        raise UsageError(
            "--draw matched optimises the latents of one generator, expected neither --mixture nor --filter"
        )
    if args.draw == "herding" and args.draw_candidates < max(args.ipc or [50]):
        raise UsageError(
            f"--draw-candidates {args.draw_candidates}: expected at least the {max(args.ipc or [50])} "
            "images a class of --ipc"
        )
    if "condensed" not in (*names, *(args.match_bytes or ())):
        check_condense_flags(vars(args), "--source condensed", f"--source {' '.join(names)}")
        if args.codec != "raw":
            raise UsageError(
                f"--codec {args.codec} is of --source condensed, found --source {' '.join(names)}"
            )
    soft = "soft" in (args.labels or [])
    if args.filter and not args.teacher:
        raise UsageError(
            "--filter and --teacher need each other: a probability, and the classifier that gives it"
        )
    if soft and not args.teacher:
        raise UsageError("--labels soft needs --teacher, the classifier that gives them")
    if args.teacher and not (soft or args.filter):
        raise UsageError(f"--teacher {args.teacher} is for --labels soft and --filter, found neither")
    if args.temperature != 1 and not soft:
        raise UsageError(
            f"--temperature {args.temperature:g} is of --labels soft, found "
            f"{' '.join(args.labels or ['hard'])}"
        )
    return names


def load_inputs(
    args: argparse.Namespace, names: list[str]
) -> tuple[Data, list[GanCheckpoint], list[DistilledSet], SavedClassifier | None, list[int]]:
    """Those splits of the set that are needed; the checkpoints, distilled sets and teacher that are given;
    and the numbers of images."""
    checkpoints = [read_gan(path) for path in args.pretrain_weight or []]
    first = min(
        checkpoints, key=lambda checkpoint: checkpoint.info is None, default=None
    )  # the first that names its set
    name = first.data_name(args.data) if first else args.data or "cifar10"
    info = first.info if first else None
    needs_train = (
        args.val_size
        or args.match_bytes is not None
        or args.draw != "random"
        or {"real", "random-real", "herding", "condensed"} & set(names)
    )
    splits = (["train"] if needs_train else []) + ([] if args.val_size else ["test"])
    folder_flags = {"image_size": args.image_size, "test_folder": args.test_folder}
    folder_flags["background"] = None if args.file and name != "folder" else args.background
    data = load_data(
        name, args.data_dir, splits=tuple(splits), val_size=args.val_size, info=info, **folder_flags
    )
    for checkpoint in checkpoints:
        if checkpoint.info not in (None, data.info):
            raise UsageError(
                f"{checkpoint.path}: was trained on {checkpoint.info.name}, expected the {name} of "
                f"{first.path}"
            )
        checkpoint.check_data(data.info)
        if "generator" in names:
            warn_of_seen_images(checkpoint, args.val_size)
    if args.export and checkpoints[0].info is None:
        raise UsageError(
            f"--export {args.export}: {checkpoints[0].path} names no data set, expected a checkpoint "
            "written here"
        )
    how = {
        "image_range": args.image_range,
        "label_kind": args.label_kind,
        "factor": args.factor,
        "background": args.background,
    }
    sets = [found for path in args.file or [] for found in read_distilled(path, data.info, **how)]
    for found in sets:
        if found.soft and "hard" in (args.labels or []):
            raise UsageError(f"--labels hard: {found.path} holds soft labels")
    ipcs = list(dict.fromkeys(args.ipc or [found.ipc for found in sets] or [50]))
    check_ipcs(ipcs, sets, names)
    subsets = [name for name in ("random-real", "herding", "condensed") if name in names]
    if subsets:
        counts = torch.bincount(data.train.labels, minlength=data.info.num_classes).tolist()
        if max(ipcs) > min(counts):
            smallest, wanted = data.info.class_names[counts.index(min(counts))], " and ".join(subsets)
            raise UsageError(
                f"--ipc {max(ipcs)}: class {smallest}, the smallest of {name}, has {min(counts)} training "
                f"images for {wanted}"
            )
    teacher = read_classifier(args.teacher) if args.teacher else None
    if teacher and teacher.info != data.info:
        raise UsageError(
            f"--teacher {args.teacher}: was trained on {teacher.info.name}, expected a classifier of "
            f"{data.info.name}"
        )
    if teacher and args.val_size > teacher.val_size:
        seen = (
            f"{args.teacher} was trained with --val-size {teacher.val_size}: it has seen images held out now"
        )
        tell(f"warning: --val-size {args.val_size}: {seen}")
    return data, checkpoints, sets, teacher, ipcs


def check_ipcs(ipcs: list[int], sets: list[DistilledSet], names: list[str]) -> None:
    """Raise UsageError unless `ipcs` has the size of each of `sets`, and, if there is no source but these,
    nothing else."""
    for found in sets:
        if found.ipc not in ipcs:
            asked, held = " ".join(map(str, ipcs)), f"{found.ipc} image{'s' * (found.ipc > 1)} of each class"
            raise UsageError(
                f"--ipc {asked}: {found.path} holds {held}, expected --ipc {found.ipc} or no --ipc"
            )
    for ipc in ipcs if names == ["file"] else []:
        if ipc not in [found.ipc for found in sets]:
            raise UsageError(f"--ipc {ipc}: there is no such set in --file, and no other source but it")
