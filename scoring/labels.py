"""Labels of a distilled set: classes, probabilities, or what --label-kind names."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data import DataInfo
from utils import UsageError

LABEL_KINDS = ("hard", "soft", "logits", "centred")
NAME_KIND = f"name what they are: --label-kind {' '.join(LABEL_KINDS)}"


def read_labels(
    path: object, labels: Tensor, n: int, info: DataInfo, kind: str | None
) -> tuple[Tensor, list[int]]:
    """Return the labels as int64 (N,) or float32 probabilities (N, K), and the number of images of each
    class.

    kind: "logits" are turned to softmax(labels), as DATM does; "centred" one-hots (FRePo) have 1 / K added,
    negative ones become 0, and each row is divided by its sum. None = "hard" for classes and one-hot labels,
    "soft" for other labels (N, K). A soft label counts for its most probable class. Raises UsageError if the
    labels do not fit.
    """
    k = info.num_classes
    if labels.is_complex():
        raise UsageError(f"{path}: found complex labels, expected classes 0 to {k - 1} or probabilities")
    if labels.dtype not in (
        torch.bool,
        torch.float32,
        torch.float64,
    ):  # not all operations exist for the other types
        labels = labels.float() if labels.is_floating_point() else labels.long()
    if labels.shape == (n, 1):
        labels = labels.squeeze(1)
    one_hot = labels.shape == (n, k) and _is_one_hot(labels)
    if labels.dim() == 2:
        if labels.shape != (n, k):
            raise UsageError(
                f"{path}: found soft labels {tuple(labels.shape)}, expected ({n}, {k}) for {n} images of "
                f"{info.name}"
            )
        if kind in (None, "hard") and one_hot:
            return read_labels(path, labels.int().argmax(1), n, info, None)
        if kind == "hard" or not labels.is_floating_point():
            kind_of_number = str(labels.dtype).removeprefix("torch.")
            raise UsageError(
                f"{path}: found labels {tuple(labels.shape)} of {kind_of_number} that are not one-hot, "
                "expected one 1 in each row and else 0, or soft labels as floating point"
            )
        soft = _probabilities(path, labels.float(), kind)
        if kind == "centred" and _is_one_hot(soft):
            return read_labels(path, soft.argmax(1), n, info, None)
        return soft, torch.bincount(soft.argmax(1), minlength=k).tolist()
    if labels.shape != (n,):
        raise UsageError(
            f"{path}: found labels {tuple(labels.shape)}, expected ({n},), or one-hot or soft ({n}, {k})"
        )
    if kind not in (None, "hard"):
        raise UsageError(f"--label-kind {kind}: found labels ({n},) in {path}, expected ({n}, {k})")
    if labels.dtype == torch.bool or not torch.isfinite(labels).all() or (labels != labels.round()).any():
        raise UsageError(f"{path}: found labels that are no whole numbers, expected classes 0 to {k - 1}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= k:
        raise UsageError(f"{path}: found labels {low} to {high}, expected 0 to {k - 1} for {info.name}")
    counts = torch.bincount(labels.long(), minlength=k)
    if (counts == 0).any():
        missing = some_names(
            [name for name, count in zip(info.class_names, counts, strict=True) if count == 0]
        )
        raise UsageError(
            f"{path}: found images of {int((counts > 0).sum())} classes, expected the {k} of {info.name}; "
            f"none of {missing}"
        )
    return labels.long(), counts.tolist()


def some_names(names: Sequence[str]) -> str:
    """The first ten names, for a message."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _is_one_hot(labels: Tensor) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(1) == 1).all())


def _probabilities(path: object, labels: Tensor, kind: str | None) -> Tensor:
    """The labels (N, K) as float32 probabilities."""
    if not torch.isfinite(labels).all():
        raise UsageError(f"{path}: found soft labels that are negative or not finite, expected probabilities")
    if kind == "logits":
        return labels.softmax(1)
    if kind == "centred":
        shifted = (labels + 1 / labels.shape[1]).clamp(min=0)
        whole = shifted.round()
        # what rounding left of a one-hot label
        shifted = torch.where((shifted - whole).abs() < 1e-5, whole, shifted)
        if (shifted.sum(1) == 0).any():
            raise UsageError(
                f"--label-kind centred: {path} holds a label without a positive value after 1 / "
                f"{labels.shape[1]} is added"
            )
        return shifted / shifted.sum(1, keepdim=True)
    if labels.min() < 0:
        raise UsageError(
            f"{path}: found soft labels that are negative or not finite, expected probabilities, not "
            f"logits; {NAME_KIND}"
        )
    sums = labels.sum(1)
    worst = sums[(sums - 1).abs().argmax()]
    if abs(worst - 1) > 1e-2:
        raise UsageError(f"{path}: found soft labels that sum to {worst:g}, expected 1; {NAME_KIND}")
    return labels / sums[:, None] if abs(worst - 1) > 1e-6 else labels
