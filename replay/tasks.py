"""The classes and the images of each task."""

from collections.abc import Sequence

import torch

from data import ImageSet
from engine.seeds import derive_seed
from replay.plan import Generation
from utils import UsageError


def split_classes(num_classes: int, num_tasks: int, order_seed: int | None) -> list[list[int]]:
    """Split the classes into tasks: consecutive classes of the natural order, or of a random order if
    order_seed is given.

    Raises UsageError if there are more tasks than classes.
    """
    if num_tasks > num_classes:
        raise UsageError(f"--num-tasks {num_tasks}: expected at most the {num_classes} classes")
    order = torch.arange(num_classes)
    if order_seed is not None:
        order = torch.randperm(
            num_classes, generator=torch.Generator().manual_seed(derive_seed(order_seed, "class order"))
        )
    return [part.tolist() for part in order.tensor_split(num_tasks)]


def describe_tasks(classes: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """One line for the reader: the classes of each task by name, the first ten of each."""
    tasks = (
        ", ".join(class_names[label] for label in labels[:10]) + (", ..." if len(labels) > 10 else "")
        for labels in classes
    )
    return "tasks: " + "; ".join(f"{number}: {names}" for number, names in enumerate(tasks, 1))


def listed_classes(
    tasks: Sequence[str], class_names: Sequence[str], order_seed: int | None
) -> list[list[int]]:
    """The classes of each task as the user lists them: ["0,1,2", "cat,dog"]; classes that are not listed are
    left out.

    A class is named by its name, or by its number where no class has that name. Raises UsageError for a class
    that there is not or that is listed twice, and for a task without one.
    """
    if order_seed is not None:
        raise UsageError(
            f"--class-order {order_seed}: --tasks lists the classes in their order, expected one of the two"
        )
    numbers = {str(label): label for label in range(len(class_names))} | {
        name: label for label, name in enumerate(class_names)
    }
    classes: list[list[int]] = []
    for task in tasks:
        words = [word.strip() for word in task.split(",")]
        for word in words:
            if word not in numbers:
                raise UsageError(
                    f"--tasks {task}: found {word!r}, expected some of {', '.join(class_names)}, or their "
                    "numbers"
                )
        classes.append([numbers[word] for word in words])
    every = [label for labels in classes for label in labels]
    for label in every:
        if every.count(label) > 1:
            raise UsageError(
                f"--tasks {' '.join(tasks)}: class {class_names[label]} is listed twice, expected each "
                "class once"
            )
    return classes


def split_tasks(train: ImageSet, classes: Sequence[Sequence[int]]) -> list[ImageSet]:
    """Return the images of each task, as copies."""
    device = train.labels.device
    return [
        train[torch.isin(train.labels, torch.tensor(labels, device=device)).nonzero().flatten()]
        for labels in classes
    ]


def check_sizes(
    tasks: Sequence[ImageSet], batch_size: int, generation: Generation | None, class_names: Sequence[str]
) -> None:
    """Raise UsageError if a batch is larger than a task, or if one of a class is larger than the class."""
    flags = {"--batch-size": batch_size}
    if generation is not None:
        flags["--gan-batch-size"] = generation.gan_batch_size
    for flag, size in flags.items():
        for number, task in enumerate(tasks, 1):
            if size > len(task):
                raise UsageError(f"{flag} {size}: larger than task {number}, which has {len(task)} images")
    if generation is None or not generation.taught:
        return
    for task in tasks:
        labels, counts = task.labels.unique(return_counts=True)
        if (least := int(counts.min())) < generation.match_batch:
            raise UsageError(
                f"--match-batch {generation.match_batch}: a step matches {generation.match_batch} images of "
                f"a class, found {least} training images of {class_names[labels[counts.argmin()]]}"
            )
