"""The settings of a continual learner, and which of its flags have an effect."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from models.condense import Condensing
from replay.methods import METHODS
from scoring.storage import LOSSY
from utils import Effect

LAYOUTS = ("carried", "per-task")  # of a run's generators
STARTS = ("new", "previous")  # of a task's generator
TABLES = ("task", "all")  # of a task's generator


@dataclass(frozen=True)
class Options:
    """Settings of a run; each is the value of the flag of continual.py with its name."""

    epochs: int
    batch_size: int
    replay_batch_size: int
    dsa_strategy: str
    alpha: float
    beta: float
    consistency: float
    distill_weight: float
    replay_balance: str
    replay_images: int | None
    distilled_share: float
    offer: str
    filter: float
    retrain: bool
    retrain_steps: int | None
    rehearse_steps: int
    rehearse_decay: str
    gan_steps: int
    gan_batch_size: int
    gan_lr: float
    gan_lr_d: float | None
    gp_weight: float
    ema: float
    restat: int
    keep_discriminator: bool
    oracle: bool
    recipe_match: str
    match_steps: int
    match_batch: int
    match: str
    match_weight: float | None
    teacher_weight: float
    generator_start: str
    latents: int
    latent_steps: int
    pool_steps: int
    pool_lr: float
    condensing: Condensing


def make_options(flags: Mapping[str, Any], tracks: Mapping[str, int]) -> Options:
    """Make the settings of the flags, with the defaults that depend on others filled in. tracks: default of
    --epochs for each --track."""
    given, ours = SimpleNamespace(**flags), flags["method"] == "dim"
    distill = 0.0 if given.replay_loss else 0.5 if ours else 1.0
    filled = {
        "epochs": given.epochs or tracks[given.track],
        "replay_batch_size": given.replay_batch_size or given.batch_size,
        "distill_weight": distill if given.distill_weight is None else given.distill_weight,
        "match_steps": given.match_steps or 0,
        "latent_steps": given.latent_steps or 200,
        "rehearse_decay": given.rehearse_decay or "none",
        "condensing": Condensing.of(flags),
    }
    return Options(
        **{field.name: flags[field.name] for field in fields(Options) if field.name not in filled} | filled
    )


def generates(args: Namespace) -> bool:
    """Whether the method has a generator."""
    return METHODS[args.method].memory == "generator"


def buffers(args: Namespace) -> bool:
    """Whether real images are kept."""
    return METHODS[args.method].memory == "buffer" or bool(args.buffer_share or args.buffer_size)


def matches(args: Namespace) -> bool:
    """Whether the generator is trained by matching."""
    return generates(args) and bool(args.match_steps)


# Flags of continual.py that depend on others; those that are refused are in check_flags.
EFFECTS = (
    Effect(("alpha", "beta"), lambda args: args.method == "der++", "without --method der++"),
    Effect(
        ("consistency", "average_decay"),
        lambda args: "cls-er" in (args.method, args.replay_loss),
        "without --method cls-er or --replay-loss cls-er",
    ),
    Effect(
        (
            "gan",
            "storage",
            "gan_steps",
            "gan_batch_size",
            "gan_lr",
            "gp_weight",
            "ema",
            "restat",
            "replay_balance",
        ),
        generates,
        "without a generator, which dgr and dim have",
    ),
    Effect(
        ("gp_weight",), lambda args: args.gan == "dim", "with --gan resnet, which has no gradient penalty"
    ),
    Effect(
        ("match", "match_weight", "pool_steps"),
        matches,
        "where nothing is matched: no dgr or dim, or no --match-steps",
    ),
    Effect(
        ("pool_lr",),
        lambda args: args.latents or matches(args),
        "where nothing is matched: no --match-steps and no --latents",
    ),
    Effect(
        ("match_batch", "teacher_weight"),
        lambda args: args.latents or args.recipe_match == "energy",
        "without --recipe-match energy or --latents",
    ),
    Effect(("latent_steps",), lambda args: args.latents, "without --latents"),
    Effect(
        ("match", "match_weight", "pool_steps"),
        lambda args: args.recipe_match == "paper",
        "with --recipe-match energy, which sets it",
    ),
    Effect(
        ("gan_lr", "gan_lr_d", "gp_weight", "ema"),
        lambda args: args.gan_steps,
        "without a GAN, with --gan-steps 0",
    ),
    Effect(("rehearse_decay",), lambda args: args.rehearse_steps, "without --rehearse-steps"),
    Effect(("quality",), lambda args: args.codec in LOSSY, "without --codec jpeg or jpeg-scan"),
    Effect(("offer",), buffers, "without a buffer of real images"),
    Effect(
        ("offer",),
        lambda args: not (METHODS[args.method].retrains or args.retrain),
        "with gdumb and --retrain, which fill the buffer at the end of a task",
    ),
    Effect(
        ("replay_batch_size",),
        lambda args: METHODS[args.method].memory and not (METHODS[args.method].retrains or args.retrain),
        "where nothing is replayed beside a task",
    ),
    Effect(("epochs",), lambda args: not args.retrain_steps, "with --retrain-steps"),
)


def layout_of(method: str, layout: str | None, oracle: bool) -> str:
    """Return how generators are kept: `layout` if it is given, else the default of the method."""
    return layout or ("carried" if method == "dgr" or oracle else "per-task")


def tables_of(method: str, layout: str | None, tables: str | None, oracle: bool) -> str:
    """Return of which classes a generator has tables: `tables` if it is given, else those of its task where
    it is of one task."""
    return tables or ("all" if layout_of(method, layout, oracle) == "carried" else "task")
