"""The classes and the images of each task."""

from collections.abc import Sequence

import torch

from data import ImageSet
from engine.seeds import derive_seed
from replay.options import Options
from utils import UsageError


def split_classes(num_classes: int, num_tasks: int, order_seed: int | None) -> list[list[int]]:
    """Split the classes into tasks: consecutive classes of the natural order, or of a random order if order_seed is given.

    Raises UsageError if there are more tasks than classes.
    """
    if num_tasks > num_classes:
        raise UsageError(f"--num-tasks {num_tasks}: expected at most the {num_classes} classes")
    order = torch.arange(num_classes)
    if order_seed is not None:
        order = torch.randperm(num_classes, generator=torch.Generator().manual_seed(derive_seed(order_seed, "class order")))
    return [part.tolist() for part in order.tensor_split(num_tasks)]


def describe_tasks(classes: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """One line for the reader: the classes of each task by name, the first ten of each."""
    tasks = (", ".join(class_names[label] for label in labels[:10]) + (", ..." if len(labels) > 10 else "") for labels in classes)
    return "tasks: " + "; ".join(f"{number}: {names}" for number, names in enumerate(tasks, 1))


def split_tasks(train: ImageSet, classes: Sequence[Sequence[int]]) -> list[ImageSet]:
    """Return the images of each task, as copies."""
    device = train.labels.device
    return [train[torch.isin(train.labels, torch.tensor(labels, device=device)).nonzero().flatten()] for labels in classes]


def check_sizes(tasks: Sequence[ImageSet], options: Options, generates: bool) -> None:
    """Raise UsageError if a batch is larger than a task."""
    flags = {"--batch-size": options.batch_size} | ({"--gan-batch-size": options.gan_batch_size} if generates else {})
    for flag, batch_size in flags.items():
        for place, task in enumerate(tasks, 1):
            if batch_size > len(task):
                raise UsageError(f"{flag} {batch_size}: larger than task {place}, which has {len(task)} images")
