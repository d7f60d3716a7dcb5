"""The check that the flags of a continual learner agree."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from losses import LOSSES
from models.condense import check_condense_flags
from replay.methods import METHODS, Method
from replay.options import layout_of
from utils import UsageError


def check_flags(flags: Mapping[str, Any], method: Method) -> None:
    """Raise UsageError if flags contradict each other.

    flags: the flags of continual.py by name; None for a flag that has no default and was not given.
    """
    given = SimpleNamespace(**flags)
    layout = layout_of(given.method, given.layout, given.oracle)
    _check_bytes(given, method)
    _check_owners(given, method)
    if not method.condenses:
        check_condense_flags(flags, "--method condensed", given.method)
    _check_replay(given)
    _check_distilled(given, layout)
    _check_track(given, method)
    if method.memory == "generator":
        _check_generators(given, layout)
    _check_steps(given, method)


def _check_bytes(given: SimpleNamespace, method: Method) -> None:
    """Raise UsageError if the flags of the memory's size contradict each other or the method."""
    kept = "nothing" if method.memory is None else "every image" if method.unlimited else None
    for flag, value in (("--memory-bytes", given.memory_bytes), ("--buffer-size", given.buffer_size)):
        if kept and value:
            raise UsageError(f"{flag} {value}: --method {given.method} keeps {kept}")
    if method.memory == "buffer" and not kept and (given.memory_bytes is None) == (given.buffer_size is None):
        raise UsageError(f"--method {given.method} needs --memory-bytes or --buffer-size, and not both")
    if given.memory_bytes and given.buffer_size:
        raise UsageError(
            f"--buffer-size {given.buffer_size}: expected --memory-bytes or --buffer-size, and not both"
        )
    if (
        method.memory == "generator"
        and given.buffer_share
        and (given.memory_bytes is None or given.buffer_share == 1)
    ):
        raise UsageError(f"--buffer-share {given.buffer_share}: expected a share below 1 of --memory-bytes")
    if given.codec != "raw" and not (
        given.buffer_size or given.buffer_share or (method.memory == "buffer" and given.memory_bytes)
    ):
        raise UsageError(f"--codec {given.codec}: there is no buffer of real images to store")


OWNERS = {  # the methods of a flag, where they are not dgr and dim
    "--replay-loss": "dim and condensed",
    "--distilled-share": "dim and condensed",
    "--retrain": "dim, dgr and condensed",
    "--latents": "dim",
    "--latent-steps": "dim",
}


def _check_owners(given: SimpleNamespace, method: Method) -> None:
    """Raise UsageError if a flag is of other methods than the one given."""
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
            owners = OWNERS.get(flag, "dgr and dim")
            if value is not None and not (method.condenses and "condensed" in owners):
                raise UsageError(f"{flag} is of --method {owners}; found {given.method}")
    elif given.layout and given.method == "dgr" and given.layout != "carried":
        raise UsageError(
            f"--layout {given.layout}: --method dgr carries one generator on, --method dim takes either"
        )
    elif given.replay_loss and given.method == "dgr":
        raise UsageError("--replay-loss is of --method dim and condensed; dgr distils")
    if given.fill_real and not method.condenses:
        raise UsageError(f"--fill-real is of --method condensed; found {given.method}")
    if method.condenses and given.offer == "task":
        raise UsageError(
            "--offer task is of buffers of real images; --method condensed always fills its buffer at the "
            "end of a task"
        )
    by_class = [name for name, loss in LOSSES.items() if "classes" in loss.needs]
    if given.match in by_class:
        usable = ", ".join(name for name in [*LOSSES, "none"] if name not in by_class)
        raise UsageError(
            f"--match {given.match}: needs the batches of pool_match.py --match-batch, expected one of "
            f"{usable}"
        )


def _check_replay(given: SimpleNamespace) -> None:
    """Raise UsageError if --replay-loss contradicts other flags."""
    if given.replay_loss and given.retrain:
        raise UsageError(
            f"--replay-loss {given.replay_loss}: --retrain learns from memory alone, nothing is replayed "
            "beside a task"
        )
    if given.replay_loss and (given.distill_weight or given.replay_balance != "classes"):
        found = (
            f"--distill-weight {given.distill_weight}"
            if given.distill_weight
            else f"--replay-balance {given.replay_balance}"
        )
        raise UsageError(
            f"{found} weighs the loss that --replay-loss {given.replay_loss} replaces, expected one of the "
            "two"
        )


def _check_track(given: SimpleNamespace, method: Method) -> None:
    """Raise UsageError if --track online, one pass over each task, contradicts the method or other flags."""
    if given.track != "online":
        return
    if method.memory == "generator" or method.condenses:
        raise UsageError(
            f"--track online: --method {given.method} goes over a task's images several times, expected "
            "--track offline"
        )
    if given.epochs not in (None, 1):
        raise UsageError(
            f"--epochs {given.epochs}: --track online sees each image once, expected 1 or --track offline"
        )
    if given.offer == "task" and not method.retrains:
        raise UsageError("--offer task goes over a task's images again, expected --track offline")


def _check_generators(given: SimpleNamespace, layout: str) -> None:
    """Raise UsageError if the flags of generators contradict each other."""
    if given.oracle and given.layout == "per-task":
        raise UsageError(f"--oracle is one generator of all classes, found --layout {given.layout}")
    if given.generator_start != "new" and layout == "carried":
        raise UsageError(
            f"--generator-start {given.generator_start} is of a generator for each task, expected --layout "
            "per-task"
        )
    if given.class_tables == "task" and layout == "carried":
        raise UsageError("--class-tables task: one generator makes all classes, expected --class-tables all")
    if given.recipe_match != "paper" and (given.keep_discriminator or given.retrain):
        flag = "--keep-discriminator" if given.keep_discriminator else "--retrain"
        raise UsageError(
            f"{flag}: --recipe-match {given.recipe_match} ends a task without it, see --rehearse-steps"
        )
    if given.keep_discriminator and (given.oracle or layout != "carried"):
        raise UsageError(
            "--keep-discriminator is for a generator that is carried on: --method dgr or --layout carried, "
            "without --oracle"
        )
    if given.retrain and given.filter and given.layout != "carried":
        raise UsageError(
            f"--filter {given.filter}: --retrain replays only to a carried generator, expected --layout "
            "carried"
        )
    if not given.gan_steps and given.recipe_match == "paper":
        raise UsageError(
            "--gan-steps 0: without a GAN the generator needs --recipe-match energy, found --recipe-match "
            "paper"
        )
    if given.recipe_match != "paper" and not given.match_steps:
        found = "none" if given.match_steps is None else given.match_steps
        raise UsageError(f"--recipe-match {given.recipe_match}: expected --match-steps, found {found}")


def _check_steps(given: SimpleNamespace, method: Method) -> None:
    """Raise UsageError if a number of steps or images is of something that the run does not do."""
    if given.match_batch < 2:
        raise UsageError(f"--match-batch {given.match_batch}: expected two or more images of each class")
    if given.rehearse_steps and (method.memory is None or method.retrains or given.retrain):
        found = "--retrain, which learns from memory alone" if given.retrain else f"--method {given.method}"
        raise UsageError(
            f"--rehearse-steps {given.rehearse_steps}: expected a method with a memory beside its stream, "
            f"found {found}"
        )
    if given.retrain_steps and not (method.retrains or given.retrain):
        raise UsageError(
            f"--retrain-steps {given.retrain_steps} is of --method gdumb and --retrain, found neither"
        )


def _check_distilled(given: SimpleNamespace, layout: str) -> None:
    """Raise UsageError if --distilled-share or --latents contradict other flags, which are named as in
    check_flags."""
    carried = (
        "--oracle" if given.oracle else "--method dgr" if given.method == "dgr" else f"--layout {layout}"
    )
    if given.latents:
        if layout == "carried":
            raise UsageError(
                f"--latents {given.latents}: expected a generator for each task, found {carried}"
            )
        if given.retrain or given.filter or given.distilled_share:
            found = "--retrain" if given.retrain else "--filter" if given.filter else "--distilled-share"
            raise UsageError(
                f"--latents {given.latents} are matched after the networks have learnt a task, expected no "
                f"{found}"
            )
    if given.distilled_share:
        if not round(given.distilled_share * given.batch_size):
            found = f"{given.distilled_share} of --batch-size {given.batch_size}"
            raise UsageError(
                f"--distilled-share: expected one distilled image in a batch or more, found {found}, which "
                "rounds to none"
            )
        if given.method == "dgr":
            raise UsageError(
                f"--distilled-share {given.distilled_share} is of --method dim and condensed; found dgr"
            )
        found = (
            "--retrain"
            if given.retrain
            else f"--recipe-match {given.recipe_match}"
            if given.recipe_match != "paper"
            else ""
        )
        if found:
            raise UsageError(
                f"--distilled-share {given.distilled_share}: expected what is distilled before a stream, "
                f"found {found}"
            )
        if METHODS[given.method].memory == "generator" and layout == "carried":
            raise UsageError(
                f"--distilled-share {given.distilled_share}: expected a generator for each task, found "
                f"{carried}"
            )
