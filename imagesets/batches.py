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
        expected = f"0 or at least one image for each of the {num_classes} classes"
        raise UsageError(f"--val-size {val_size}: expected {expected}")
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        members = (labels.cpu() == label).nonzero().flatten()
        share = val_size // num_classes + (label < val_size % num_classes)
        if share >= len(members):
            name = class_names[label] if class_names else label
            asked = f"asks for {share} of the {len(members)} training images of class {name}"
            raise UsageError(f"--val-size {val_size}: {asked}")
        held_out[members[_permutation(len(members), "held-out", label)[:share]]] = True
    return (~held_out).nonzero().flatten().to(labels.device), held_out.nonzero().flatten().to(labels.device)


def _permutation(n: int, *seed: int | str) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive_seed(*seed)))


def steps_per_epoch(num_images: int, batch_size: int, batches: int = 1) -> int:
    """Number of whole steps, of `batches` batches each, in a pass over the set.

    Raises UsageError if there is none.
    """
    if batches * batch_size > num_images:
        flags = f"--batch-size {batch_size}" + (f" with --d-steps {batches}" if batches > 1 else "")
        raise UsageError(f"{flags}: larger than the training set, which has {num_images} images")
    return num_images // (batches * batch_size)


def epoch_order(num_images: int, device: torch.device, *seed: int | str) -> Tensor:
    """A permutation (num_images,) on `device`, the same for a seed on every kind of device."""
    return _permutation(num_images, *seed).to(device)


def class_batches(
    labels: Tensor,
    per_class: int,
    num_classes: int,
    *seed: int | str,
    skip: int = 0,
    class_names: Sequence[str] = (),
) -> Iterator[Tensor]:
    """Yield batches of indices (num_classes, per_class) without end, each row of one class.

    skip: number of first batches that are left out. The classes that `labels` (N,) holds follow one another,
    each once, in an order that is shuffled anew after each such pass; each class is taken in shuffled passes
    over its images, in whole batches. Raises UsageError if a class has too few images.
    """
    on_host = labels.cpu()
    members = {int(label): (on_host == label).nonzero().flatten() for label in on_host.unique()}
    for label, indices in members.items():
        if len(indices) < per_class:
            name = class_names[label] if class_names else label
            reason = f"class {name} has {len(indices)} training images, expected as many or more"
            raise UsageError(f"--match-batch {per_class}: {reason}")
    present = list(members)
    latest: dict[tuple, tuple[int, Tensor]] = {}

    def shuffled(n: int, *kind: int | str, number: int) -> Tensor:
        """The permutation of n with this number, kept until the next of its kind is asked for."""
        if kind not in latest or latest[kind][0] != number:
            latest[kind] = (number, _permutation(n, *seed, *kind, number))
        return latest[kind][1]

    for first in itertools.count(skip * num_classes, num_classes):
        rows = []
        for place in range(first, first + num_classes):
            visit, position = divmod(place, len(present))
            label = present[int(shuffled(len(present), "classes", number=visit)[position])]
            indices = members[label]
            number, batch = divmod(visit, len(indices) // per_class)
            order = shuffled(len(indices), "class", label, number=number)
            rows.append(indices[order[batch * per_class :][:per_class]])
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
