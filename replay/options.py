"""The settings of a continual learner, and the check that its flags agree."""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from models.condense import Condensing, check_condense_flags
from models.matching import BY_CLASS, MATCH_WEIGHTS
from replay.methods import METHODS, Method
from scoring.storage import LOSSY
from utils import Effect, UsageError


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
    """Make the settings of the flags, with the defaults that depend on others filled in. tracks: default of --epochs for each --track."""
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
    return Options(**{field.name: flags[field.name] for field in fields(Options) if field.name not in filled} | filled)


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
        ("gan", "storage", "gan_steps", "gan_batch_size", "gan_lr", "gp_weight", "ema", "restat", "replay_balance"),
        generates,
        "without a generator, which dgr and dim have",
    ),
    Effect(("gp_weight",), lambda args: args.gan == "dim", "with --gan resnet, which has no gradient penalty"),
    Effect(("match", "match_weight", "pool_steps"), matches, "where nothing is matched: no dgr or dim, or no --match-steps"),
    Effect(("pool_lr",), lambda args: args.latents or matches(args), "where nothing is matched: no --match-steps and no --latents"),
    Effect(
        ("match_batch", "teacher_weight"),
        lambda args: args.latents or args.recipe_match == "energy",
        "without --recipe-match energy or --latents",
    ),
    Effect(("latent_steps",), lambda args: args.latents, "without --latents"),
    Effect(("match", "match_weight", "pool_steps"), lambda args: args.recipe_match == "paper", "with --recipe-match energy, which sets it"),
    Effect(("gan_lr", "gan_lr_d", "gp_weight", "ema"), lambda args: args.gan_steps, "without a GAN, with --gan-steps 0"),
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
    """Return of which classes a generator has tables: `tables` if it is given, else those of its task where it is of one task."""
    return tables or ("all" if layout_of(method, layout, oracle) == "carried" else "task")


def check_flags(flags: Mapping[str, Any], method: Method) -> None:
    """Raise UsageError if flags contradict each other.

    flags: the flags of continual.py by name; None for a flag that has no default and was not given.
    """
    given = SimpleNamespace(**flags)
    layout = layout_of(given.method, given.layout, given.oracle)
    kept = "nothing" if method.memory is None else "every image" if method.unlimited else None
    for flag, value in (("--memory-bytes", given.memory_bytes), ("--buffer-size", given.buffer_size)):
        if kept and value:
            raise UsageError(f"{flag} {value}: --method {given.method} keeps {kept}")
    if method.memory == "buffer" and not kept and (given.memory_bytes is None) == (given.buffer_size is None):
        raise UsageError(f"--method {given.method} needs --memory-bytes or --buffer-size, and not both")
    generator_flags = {  # None where not given
        "--oracle": given.oracle or None,
        "--retrain": given.retrain or None,
        "--keep-discriminator": given.keep_discriminator or None,
        "--buffer-share": given.buffer_share or None,
        "--filter": given.filter or None,
        "--match-steps": given.match_steps,
        "--layout": given.layout,
        "--class-tables": given.class_tables,
        "--width": given.width,
        "--replay-images": given.replay_images,
        "--distill-weight": given.distill_weight,
        "--z-dim": given.z_dim,
        "--gan-lr-d": given.gan_lr_d,
        "--match-weight": given.match_weight,
        "--replay-loss": given.replay_loss,
        "--distilled-share": given.distilled_share or None,
        "--recipe-match": None if given.recipe_match == "paper" else given.recipe_match,
        "--latents": given.latents or None,
        "--latent-steps": given.latent_steps,
        "--generator-start": None if given.generator_start == "new" else given.generator_start,
    }
    if method.memory != "generator":
        for flag, value in generator_flags.items():
            owners = {
                "--replay-loss": "dim and condensed",
                "--distilled-share": "dim and condensed",
                "--retrain": "dim, dgr and condensed",
                "--latents": "dim",
                "--latent-steps": "dim",
            }.get(flag, "dgr and dim")
            if value is not None and not (method.condenses and "condensed" in owners):
                raise UsageError(f"{flag} is of --method {owners}; found {given.method}")
    elif given.layout and given.method == "dgr" and given.layout != "carried":
        raise UsageError(f"--layout {given.layout}: --method dgr carries one generator on, --method dim takes either")
    elif given.replay_loss and given.method == "dgr":
        raise UsageError("--replay-loss is of --method dim and condensed; dgr distils")
    elif given.track == "online":
        raise UsageError(f"--track online: --method {given.method} goes over a task's images several times, expected --track offline")
    if given.fill_real and not method.condenses:
        raise UsageError(f"--fill-real is of --method condensed; found {given.method}")
    if method.condenses and given.track == "online":
        raise UsageError("--track online: --method condensed goes over a task's images several times, expected --track offline")
    if method.condenses and given.offer == "task":
        raise UsageError("--offer task is of buffers of real images; --method condensed always fills its buffer at the end of a task")
    if not method.condenses:
        check_condense_flags(flags, "--method condensed", given.method)
    if given.match in BY_CLASS:
        usable = ", ".join(name for name in MATCH_WEIGHTS if name not in BY_CLASS)
        raise UsageError(f"--match {given.match}: needs the batches of pool_match.py --match-batch, expected one of {usable}")
    if given.replay_loss and given.retrain:
        raise UsageError(f"--replay-loss {given.replay_loss}: --retrain learns from memory alone, nothing is replayed beside a task")
    _check_distilled(given, layout)
    if given.replay_loss and (given.distill_weight or given.replay_balance != "classes"):
        found = f"--distill-weight {given.distill_weight}" if given.distill_weight else f"--replay-balance {given.replay_balance}"
        raise UsageError(f"{found} weighs the loss that --replay-loss {given.replay_loss} replaces, expected one of the two")
    if given.buffer_share and (given.memory_bytes is None or given.buffer_share == 1):
        raise UsageError(f"--buffer-share {given.buffer_share}: expected a share below 1 of --memory-bytes")
    if given.memory_bytes and given.buffer_size:
        raise UsageError(f"--buffer-size {given.buffer_size}: expected --memory-bytes or --buffer-size, and not both")
    if given.track == "online" and given.epochs not in (None, 1):
        raise UsageError(f"--epochs {given.epochs}: --track online sees each image once, expected 1 or --track offline")
    if given.oracle and given.layout == "per-task":
        raise UsageError(f"--oracle is one generator of all classes, found --layout {given.layout}")
    if given.generator_start != "new" and layout == "carried":
        raise UsageError(f"--generator-start {given.generator_start} is of a generator for each task, expected --layout per-task")
    if given.class_tables == "task" and layout == "carried":
        raise UsageError("--class-tables task: one generator makes all classes, expected --class-tables all")
    if given.recipe_match != "paper" and (given.keep_discriminator or given.retrain):
        flag = "--keep-discriminator" if given.keep_discriminator else "--retrain"
        raise UsageError(f"{flag}: --recipe-match {given.recipe_match} ends a task without it, see --rehearse-steps")
    if given.keep_discriminator and (given.oracle or layout != "carried"):
        raise UsageError("--keep-discriminator is for a generator that is carried on: --method dgr or --layout carried, without --oracle")
    if given.retrain and given.filter and given.layout != "carried":
        raise UsageError(f"--filter {given.filter}: --retrain replays only to a carried generator, expected --layout carried")
    if given.track == "online" and given.offer == "task" and not method.retrains:
        raise UsageError("--offer task goes over a task's images again, expected --track offline")
    if given.codec != "raw" and not (given.buffer_size or given.buffer_share or (method.memory == "buffer" and given.memory_bytes)):
        raise UsageError(f"--codec {given.codec}: there is no buffer of real images to store")
    if not given.gan_steps and given.recipe_match == "paper" and method.memory == "generator":
        raise UsageError("--gan-steps 0: without a GAN the generator needs --recipe-match energy, found --recipe-match paper")
    if given.match_batch < 2:
        raise UsageError(f"--match-batch {given.match_batch}: expected two or more images of each class")
    if given.recipe_match != "paper" and method.memory == "generator" and not given.match_steps:
        found = "none" if given.match_steps is None else given.match_steps
        raise UsageError(f"--recipe-match {given.recipe_match}: expected --match-steps, found {found}")
    if given.rehearse_steps and (method.memory is None or method.retrains or given.retrain):
        found = "--retrain, which learns from memory alone" if given.retrain else f"--method {given.method}"
        raise UsageError(f"--rehearse-steps {given.rehearse_steps}: expected a method with a memory beside its stream, found {found}")
    if given.retrain_steps and not (method.retrains or given.retrain):
        raise UsageError(f"--retrain-steps {given.retrain_steps} is of --method gdumb and --retrain, found neither")


def _check_distilled(given: SimpleNamespace, layout: str) -> None:
    """Raise UsageError if --distilled-share or --latents contradict other flags, which are named as in check_flags."""
    carried = "--oracle" if given.oracle else "--method dgr" if given.method == "dgr" else f"--layout {layout}"
    if given.latents:
        if layout == "carried":
            raise UsageError(f"--latents {given.latents}: expected a generator for each task, found {carried}")
        if given.retrain or given.filter or given.distilled_share:
            found = "--retrain" if given.retrain else "--filter" if given.filter else "--distilled-share"
            raise UsageError(f"--latents {given.latents} are matched after the networks have learnt a task, expected no {found}")
    if given.distilled_share:
        if not round(given.distilled_share * given.batch_size):
            found = f"{given.distilled_share} of --batch-size {given.batch_size}"
            raise UsageError(f"--distilled-share: expected one distilled image in a batch or more, found {found}, which rounds to none")
        if given.method == "dgr":
            raise UsageError(f"--distilled-share {given.distilled_share} is of --method dim and condensed; found dgr")
        found = "--retrain" if given.retrain else f"--recipe-match {given.recipe_match}" if given.recipe_match != "paper" else ""
        if found:
            raise UsageError(f"--distilled-share {given.distilled_share}: expected what is distilled before a stream, found {found}")
        if METHODS[given.method].memory == "generator" and layout == "carried":
            raise UsageError(f"--distilled-share {given.distilled_share}: expected a generator for each task, found {carried}")
