"""What the flags of validate.py ask for: the sources, and the images, checkpoints and sets that they name."""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch

from data import Data, load_data
from models import GanCheckpoint, SavedClassifier, read_classifier, read_gan
from scoring.distilled import DistilledSet, read_distilled
from scoring.evaluation import warn_of_seen_images
from scoring.exporting import earlier_export
from scoring.storage import LOSSY
from scoring.table import FILLERS
from utils import Effect, UsageError, tell


def sources_of(args: argparse.Namespace) -> list[str]:
    """The sources of images that are asked for."""
    names = args.source or [
        *(["generator"] if args.pretrain_weight or not args.file else []),
        *(["file"] if args.file else []),
        "random-real",
        "real",
    ]
    return list(dict.fromkeys([*names, *(["real"] if args.real else [])]))


def fillers_of(args: argparse.Namespace) -> list[str]:
    """The kinds of FILLERS that --match-bytes asks for: without a value real images by each codec, and
    condensed ones if these are a source too."""
    if args.match_bytes is None:
        return []
    names = [name for name in FILLERS if name != "condensed" or name in sources_of(args)]
    return list(dict.fromkeys(args.match_bytes)) or names


def condenses(args: argparse.Namespace) -> bool:
    """Whether images are condensed."""
    return "condensed" in (*sources_of(args), *fillers_of(args))


def effect(flags: str, applies, without: str) -> Effect:
    """An Effect of flags that are given in one text."""
    return Effect(flags.split(), applies, without)


# Flags of validate.py that have an effect only beside others.
EFFECTS = (
    effect(
        "pretrain_weight",
        lambda args: "generator" in sources_of(args),
        "but to name the image set: --source has no generator",
    ),
    effect(
        "match_bytes storage draw filter export",
        lambda args: "generator" in sources_of(args),
        "without --source generator",
    ),
    effect("draw", lambda args: "fixed" in args.budget, "without --budget fixed"),
    effect("draw_steps", lambda args: args.draw == "matched", "without --draw matched"),
    effect("image_range label_kind factor group", lambda args: args.file, "without --file"),
    effect(
        "codec condense_match condense_steps condense_lr condense_batch condense_network condense_images "
        "condense_init",
        condenses,
        "without --source condensed or --match-bytes condensed",
    ),
    effect(
        "quality",
        lambda args: args.match_bytes is not None or args.codec in LOSSY,
        "without --match-bytes or a lossy --codec",
    ),
    effect("herding_epochs", lambda args: "herding" in sources_of(args), "without --source herding"),
    effect(
        "teacher",
        lambda args: args.filter or "soft" in (args.labels or []),
        "without --labels soft or --filter",
    ),
    effect("temperature", lambda args: "soft" in (args.labels or []), "without --labels soft"),
)


@dataclass(frozen=True)
class Inputs:
    """The images, checkpoints, distilled sets and teacher that the flags name, and the numbers of images a
    class."""

    data: Data
    checkpoints: list[GanCheckpoint]
    sets: list[DistilledSet]
    teacher: SavedClassifier | None
    ipcs: list[int]


def check_flags(args: argparse.Namespace) -> None:
    """Raise UsageError for flags that need or contradict each other."""
    names = sources_of(args)
    if "generator" in names and not args.pretrain_weight:
        raise UsageError("--source generator needs --pretrain-weight, the checkpoint of a generator")
    if ("file" in names) != bool(args.file):
        found = f"--source {' '.join(names)}" if args.file else "none"
        raise UsageError(f"--source file and --file need each other: a source, and its files; found {found}")
    if "generator" in names and args.export:
        if len(args.pretrain_weight) != 1:
            raise UsageError(
                f"--export {args.export}: expected one --pretrain-weight, found {len(args.pretrain_weight)}"
            )
        earlier_export(Path(args.export))
    if args.draw == "matched" and args.filter:
        raise UsageError("--draw matched: optimises latents that no --filter has seen, expected no --filter")
    for flag, given in (("--filter", args.filter), ("--labels soft", "soft" in (args.labels or []))):
        if given and not args.teacher:
            raise UsageError(f"{flag} needs --teacher, the file of a classifier")


def load_inputs(args: argparse.Namespace) -> Inputs:
    """Read what the flags name; of the image set those splits that are needed. Raises UsageError for anything
    that does not fit the rest."""
    check_flags(args)
    names = sources_of(args)
    generates = "generator" in names
    checkpoints = [read_gan(path) for path in args.pretrain_weight or []]
    # the first that names its set
    first = min(checkpoints, key=lambda checkpoint: checkpoint.info is None, default=None)
    name = first.data_name(args.data) if first else args.data or "cifar10"
    needs_train = (
        args.val_size
        or (generates and (args.match_bytes is not None or args.draw == "matched"))
        or {"real", "random-real", "herding", "condensed"} & set(names)
    )
    splits = (["train"] if needs_train else []) + ([] if args.val_size else ["test"])
    data = load_data(
        name,
        args.data_dir,
        splits=tuple(splits),
        val_size=args.val_size,
        info=first.info if first else None,
        image_size=args.image_size,
        test_folder=args.test_folder,
        background=None if args.file and name != "folder" else args.background,
    )
    for checkpoint in checkpoints:
        if checkpoint.info not in (None, data.info):
            raise UsageError(
                f"{checkpoint.path}: was trained on {checkpoint.info.name}, expected the {name} of "
                f"{first.path}"
            )
        checkpoint.check_data(data.info)
        if generates:
            warn_of_seen_images(checkpoint, args.val_size)
    if generates and args.export and first.info is None:
        raise UsageError(
            f"--export {args.export}: {first.path} names no data set, expected a checkpoint written here"
        )
    sets = [
        one
        for path in args.file or []
        for one in read_distilled(
            path,
            data.info,
            image_range=args.image_range,
            label_kind=args.label_kind,
            factor=args.factor,
            background=args.background,
        )
    ]
    for one in sets:
        if one.soft and "hard" in (args.labels or []):
            raise UsageError(f"--labels hard: {one.path} holds soft labels")
    ipcs = list(dict.fromkeys(args.ipc or [one.ipc for one in sets] or [50]))
    check_ipcs(ipcs, sets, names)
    subsets = [name for name in ("random-real", "herding", "condensed") if name in names]
    if subsets:
        counts = torch.bincount(data.train.labels, minlength=data.info.num_classes).tolist()
        if max(ipcs) > min(counts):
            smallest = data.info.class_names[counts.index(min(counts))]
            raise UsageError(
                f"--ipc {max(ipcs)}: class {smallest}, the smallest of {name}, has {min(counts)} training "
                f"images for {' and '.join(subsets)}"
            )
    teacher = read_classifier(args.teacher) if args.teacher else None
    if teacher and teacher.info != data.info:
        raise UsageError(
            f"--teacher {args.teacher}: was trained on {teacher.info.name}, expected a classifier of "
            f"{data.info.name}"
        )
    if teacher and args.val_size > teacher.val_size:
        tell(
            f"warning: --val-size {args.val_size}: {args.teacher} was trained with --val-size "
            f"{teacher.val_size}: it has seen images held out now"
        )
    return Inputs(data, checkpoints, sets, teacher, ipcs)


def check_ipcs(ipcs: list[int], sets: list[DistilledSet], names: list[str]) -> None:
    """Raise UsageError unless `ipcs` has the size of each of `sets`, and, if there is no source but these,
    nothing else."""
    held = [one.ipc for one in sets]
    for one in sets:
        if one.ipc not in ipcs:
            images = f"{one.ipc} image{'s' * (one.ipc > 1)} of each class"
            raise UsageError(
                f"--ipc {' '.join(map(str, ipcs))}: {one.path} holds {images}, expected --ipc {one.ipc} or "
                "no --ipc"
            )
    for ipc in ipcs if names == ["file"] else []:
        if ipc not in held:
            raise UsageError(f"--ipc {ipc}: there is no such set in --file, and no other source but it")
