"""The held-out split, and the order in which images are taken."""

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.seeds import derive_seed
from utils import UsageError


def split_held_out(
    labels: Tensor, val_size: int, num_classes: int, class_names: Sequence[str] = ()
) -> tuple[Tensor, Tensor]:
    """Indices (kept, held out) of a class-balanced held-out split, in file order.

    The split is the same in every run, and a smaller split is part of a larger one. Images that one stage
    held out are therefore not trained on by a later stage of the same or a larger val_size. If val_size is no
    multiple of num_classes, the first classes hold out one image more. class_names: for the error. Raises
    UsageError if val_size is too small or too large.
    """
    if val_size < num_classes:
        raise UsageError(
            f"--val-size {val_size}: expected 0 or at least one image for each of the {num_classes} classes"
        )
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        members = (labels.cpu() == label).nonzero().flatten()
        share = val_size // num_classes + (label < val_size % num_classes)
        if share >= len(members):
            name = class_names[label] if class_names else label
            raise UsageError(
                f"--val-size {val_size}: asks for {share} of the {len(members)} training images of class "
                f"{name}"
            )
        order = torch.randperm(
            len(members), generator=torch.Generator().manual_seed(derive_seed("held-out", label))
        )
        held_out[members[order[:share]]] = True
    return (~held_out).nonzero().flatten().to(labels.device), held_out.nonzero().flatten().to(labels.device)


def steps_per_epoch(num_images: int, batch_size: int, batches: int = 1) -> int:
    """Number of whole steps, of `batches` batches each, in a pass over the set. Raises UsageError if there is
    none."""
    if batches * batch_size > num_images:
        asked = f"--batch-size {batch_size}" + (f" with --d-steps {batches}" if batches > 1 else "")
        raise UsageError(f"{asked}: larger than the training set, which has {num_images} images")
    return num_images // (batches * batch_size)


def epoch_order(num_images: int, device: torch.device, *seed: int | str) -> Tensor:
    """A permutation (num_images,) on `device` that depends on `seed` alone, the same on every kind of
    device."""
    return torch.randperm(num_images, generator=torch.Generator().manual_seed(derive_seed(*seed))).to(device)


def class_batches(
    labels: Tensor,
    per_class: int,
    num_classes: int,
    *seed: int | str,
    skip: int = 0,
    class_names: Sequence[str] = (),
) -> Iterator[Tensor]:
    """Yield batches of indices (num_classes, per_class) without end, each row of one class, after the first
    `skip` of them.

    The classes that `labels` (N,) holds take turns, in an order that is shuffled anew whenever each had its
    turn; each class is taken in shuffled passes over its images, in whole batches. Raises UsageError if a
    class has too few images.
    """
    on_host = labels.cpu()
    members = {int(label): (on_host == label).nonzero().flatten() for label in on_host.unique()}
    for label, indices in members.items():
        if len(indices) < per_class:
            name = class_names[label] if class_names else label
            raise UsageError(
                f"--match-batch {per_class}: class {name} has {len(indices)} training images, expected as "
                "many or more"
            )
    present, passes = list(members), {}

    def shuffled(n: int, *what: int | str) -> Tensor:  # kept until the next one of the same kind is asked for
        kind, number = what[:-1], what[-1]
        if passes.get(kind, (None,))[0] != number:
            passes[kind] = (
                number,
                torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(*seed, *what))),
            )
        return passes[kind][1]

    for turn in itertools.count(skip * num_classes, num_classes):
        rows = []
        for place in range(turn, turn + num_classes):
            visit, at = divmod(place, len(present))
            label = present[int(shuffled(len(present), "classes", visit)[at])]
            indices = members[label]
            number, batch = divmod(visit, len(indices) // per_class)
            rows.append(
                indices[shuffled(len(indices), "class", label, number)[batch * per_class :][:per_class]]
            )
        yield torch.stack(rows).to(labels.device)


def balanced_epochs(labels: Tensor, ipc: int, num_classes: int, *seed: int | str) -> Iterator[Tensor]:
    """Yield epochs of indices (num_classes * ipc,) without end: the next `ipc` images of every class.

    Each class is taken in shuffled passes over its images.
    """
    members = [(labels.cpu() == label).nonzero().flatten() for label in range(num_classes)]
    generator = torch.Generator().manual_seed(derive_seed(*seed))
    waiting = [torch.empty(0, dtype=torch.long)] * num_classes
    while True:
        for label, indices in enumerate(members):
            passes = [waiting[label]]
            for _ in range(-(-(ipc - len(waiting[label])) // len(indices))):
                passes.append(indices[torch.randperm(len(indices), generator=generator)])
            waiting[label] = torch.cat(passes)
        yield torch.cat([queue[:ipc] for queue in waiting]).to(labels.device)
        waiting = [queue[ipc:] for queue in waiting]
