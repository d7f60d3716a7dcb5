"""Metrics of continual learning, from the matrix acc[i, j]: accuracy in percent on task j after learning task
i (both from 0).

The matrix is a list of rows. A metric that is not defined for a matrix is None. If several forms of a metric
are in use, its docstring says which one this is.
"""

from collections.abc import Sequence
from statistics import mean

import torch
from torch import nn

from data import ImageSet
from engine.tensors import eval_mode

SETTINGS = ("class-il", "task-il")
Matrix = Sequence[Sequence[float]]


def average_accuracy(acc: Matrix) -> float:
    """Mean over tasks of the last row: accuracy at the end (Lopez-Paz & Ranzato 2017, arXiv:1706.08840,
    ACC)."""
    return mean(acc[-1])


def average_incremental_accuracy(acc: Matrix) -> float | None:
    """Mean over i of the mean accuracy on the tasks 0..i after task i (Rebuffi et al. 2017,
    arXiv:1611.07725).

    All tasks have the same weight, whatever their number of images; some codes average over images instead.
    """
    return mean(mean(row[: i + 1]) for i, row in enumerate(acc)) if _square(acc) else None


def forgetting(acc: Matrix) -> float | None:
    """Mean over tasks but the last of the best earlier accuracy minus the final one (Chaudhry et al. 2018,
    arXiv:1801.10112, Eq. 3).

    The best is over the rows 0..T-2, so the value is negative if the final accuracies are the best. Other
    codes differ: mammoth includes the final row in the best, so that its value is never negative; Avalanche
    uses the accuracy right after the task instead of the best, which makes it -backward_transfer.
    """
    if not _square(acc) or len(acc) < 2:
        return None
    return mean(max(row[j] for row in acc[:-1]) - acc[-1][j] for j in range(len(acc) - 1))


def backward_transfer(acc: Matrix) -> float | None:
    """Mean over tasks but the last of the final accuracy minus that right after the task (Lopez-Paz & Ranzato
    2017, BWT)."""
    if not _square(acc) or len(acc) < 2:
        return None
    return mean(acc[-1][j] - acc[j][j] for j in range(len(acc) - 1))


def forward_transfer(acc: Matrix, initial: Sequence[float]) -> float | None:
    """Mean over tasks but the first of the accuracy right before the task minus the untrained network's
    (ibid., FWT).

    initial: accuracy in percent on each task before any training. In class-il the value is about 0 or less,
    because classes that have not been learnt are not predicted. In task-il, among the classes of the task, it
    shows whether earlier tasks helped.
    """
    if not _square(acc) or len(acc) < 2:
        return None
    return mean(acc[j - 1][j] - initial[j] for j in range(1, len(acc)))


def summary(acc: Matrix, initial: Sequence[float]) -> dict[str, float | None]:
    """Return all metrics by name, in percent."""
    return {
        "average_accuracy": average_accuracy(acc),
        "average_incremental_accuracy": average_incremental_accuracy(acc),
        "forgetting": forgetting(acc),
        "backward_transfer": backward_transfer(acc),
        "forward_transfer": forward_transfer(acc, initial),
    }


def _square(acc: Matrix) -> bool:
    """Whether there is a row after each task; joint training has the last row alone."""
    return len(acc) == len(acc[0])


@torch.no_grad()
def accuracies(
    model: nn.Module, images: ImageSet, classes: Sequence[Sequence[int]], num_classes: int
) -> dict[str, list[float]]:
    """Accuracy in percent on the images of each task: class-il among all outputs, task-il among those of the
    image's task.

    Every image is of a class of some task.
    """
    device = images.labels.device
    task_of = torch.full((num_classes,), -1)  # a class of no task
    for task, labels in enumerate(classes):
        task_of[list(labels)] = task
    task_of = task_of.to(device)
    right = torch.zeros(2, len(classes), dtype=torch.long, device=device)
    with eval_mode(model):
        for index in torch.arange(len(images), device=device).split(1000):
            x, y = images.batch(index)
            logits = model(x)
            outside = task_of[y][:, None] != task_of  # (B, K)
            for row, scores in zip(right, (logits, logits.masked_fill(outside, -torch.inf)), strict=True):
                row += torch.bincount(task_of[y][scores.argmax(1) == y], minlength=len(classes))
    total = torch.bincount(task_of[images.labels], minlength=len(classes))
    return dict(zip(SETTINGS, (100 * right / total).tolist(), strict=True))
