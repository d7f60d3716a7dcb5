"""What is fixed for a continual run: its flags, its tasks, and the steps of each task."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from data import DataInfo, ImageSet
from engine.runtime import Runtime
from engine.seeds import derive_seed
from models.condense import Condensing
from replay.methods import Method
from utils import UsageError

TRACKS = {"offline": 5, "online": 1}  # passes over a task where --epochs is not given


@dataclass(frozen=True)
class Plan:
    """What is fixed for a run.

    args: the flags of continual.py; those that the method has not are at their defaults. condensing: None if
    the method condenses nothing. tasks: the training images of each task, on the device; no task learns from
    those of earlier ones. classes: the classes of each.
    """

    args: SimpleNamespace
    method: Method
    condensing: Condensing | None
    tasks: Sequence[ImageSet]
    classes: Sequence[Sequence[int]]
    info: DataInfo
    runtime: Runtime

    @property
    def retrains(self) -> bool:
        """Whether the networks learn from memory alone, with new weights at the end of each task."""
        return self.method.retrains or self.args.retrain

    @property
    def passes(self) -> int:
        """Passes over the images of a task."""
        return self.args.epochs or TRACKS[self.args.track]

    def lengths(self, task: int) -> dict[str, int]:
        """The number of steps of each phase of a task, in the order of the phases.

        The generator is matched after the stream, since the networks that have learnt the task teach it.
        """
        args = self.args
        stream = self.passes * -(-len(self.tasks[task]) // args.batch_size)
        return {
            "gan": args.gan_steps,
            "condense": self.condensing.steps if self.condensing else 0,
            "stream": 0 if self.retrains else stream,
            "match": args.match_steps,
            "retrain": args.retrain_steps or stream * (task + 1) if self.retrains else args.rehearse_steps,
        }

    def seen(self, task: int) -> list[int]:
        """The classes of the tasks up to this one."""
        return [label for labels in self.classes[: task + 1] for label in labels]

    def per_class(self, task: int) -> int:
        """Number of generated images of each class at a task."""
        return self.args.replay_images or -(-len(self.tasks[task]) // len(self.classes[task]))

    def images_generated(self, task: int) -> int:
        """The number of generated images that networks learn from at a task."""
        if self.method.memory != "generator":
            return 0
        per_class = self.per_class(task)
        size = len(self.seen(task)) * per_class
        passes = -(-self.lengths(task)["retrain"] // -(-size // self.args.batch_size))
        return passes * size + (len(self.seen(task - 1)) * per_class if task else 0)

    def check_sizes(self) -> None:
        """Raise UsageError if a batch is larger than a task, or if one of a class is larger than the
        class."""
        args = self.args
        flags = {"--batch-size": args.batch_size}
        if self.method.memory == "generator":
            flags["--gan-batch-size"] = args.gan_batch_size
        for flag, size in flags.items():
            for number, task in enumerate(self.tasks, 1):
                if size > len(task):
                    raise UsageError(
                        f"{flag} {size}: larger than task {number}, which has {len(task)} images"
                    )
        for task in self.tasks if args.match_steps else ():
            labels, counts = task.labels.unique(return_counts=True)
            if (least := int(counts.min())) < args.match_batch:
                raise UsageError(
                    f"--match-batch {args.match_batch}: a step matches {args.match_batch} images of a class, "
                    f"found {least} training images of {self.info.class_names[labels[counts.argmin()]]}"
                )


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
