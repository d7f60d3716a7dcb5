"""The range of the values of a distilled set, and their conversion to images in [-1, 1]."""

import torch
from torch import Tensor

from data import DataInfo
from utils import UsageError, tell

RANGES = ("uint8", "unit", "signed", "normalised")
BOUNDS = {"uint8": (0, 255), "unit": (0, 1), "signed": (-1, 1), "normalised": (-30, 30)}
SLACK = (
    1e-3  # tolerance at the bounds of a range, in widths of the range, for stored floats that were rounded
)
FEW = 0.01  # share of the values that may lie outside [0, 1] where the values tell the range
# Tolerance of a range that the user names: the share of the values that may lie outside, and that may lie
# outside by half its width.
OUTSIDE = {"uint8": 0.05, "unit": 0.25, "signed": 0.25, "normalised": 0.01}
FAR_OUTSIDE = 0.01


def to_signed(path: object, images: Tensor, info: DataInfo, image_range: str | None) -> Tensor:
    """Convert images (N, C, H, W) to float32, 2 * pixel - 1 for pixels in [0, 1].

    image_range: one of RANGES; None = the one that the values tell. Values outside of a range are clipped and
    counted on stderr, those of normalised images are kept. Images of little contrast are told on stderr.
    Raises UsageError if the values do not tell the range, or are not of the range named.
    """
    signed = _converted(path, images, info, image_range)
    used = float(signed.max() - signed.min()) / 2
    if used < 0.1:
        tell(f"warning: {path}: its images use {100 * used:.2g} % of the range from black to white")
    return signed


def _converted(path: object, images: Tensor, info: DataInfo, image_range: str | None) -> Tensor:
    if images.dtype == torch.uint8:
        if image_range not in (None, "uint8"):
            raise UsageError(f"--image-range {image_range}: {path} holds uint8 images")
        return images.float() / 127.5 - 1
    images = images.float()
    if not torch.isfinite(images).all():
        raise UsageError(
            f"{path}: found {int((~torch.isfinite(images)).sum())} values that are NaN or infinite, "
            "expected finite images"
        )
    if looks_whitened(images):
        if image_range is None:
            raise UsageError(
                f"{path}: its images look whitened (ZCA), which is not supported; expected the un-whitened "
                "copy, of MTT images_zca_*.pt; "
                f"if they are not whitened, name their range: --image-range {' '.join(RANGES)}"
            )
        tell(f"warning: {path}: its images look whitened (ZCA); they are read as {image_range}")
    if image_range is None:
        image_range = _guess(path, images)
    else:
        _check_named(path, images, image_range)
    if image_range == "normalised":
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (info.mean, info.std))
        return (images * std + mean) * 2 - 1
    images = _clipped(path, images, image_range)
    return {"signed": images, "unit": images * 2 - 1, "uint8": images / 127.5 - 1}[image_range]


def looks_whitened(images: Tensor) -> bool:
    """Whether float images (N, C, H, W) have the statistics of ZCA whitening, which pictures do not have.

    Whitened images are centred at 0 and small, and hardly differ in their mean: brightness is but one of many
    directions of equal variance. Fewer than ten images do not tell.
    """
    std = images.std()
    if len(images) < 10 or std == 0 or std > 0.5 or images.mean().abs() > 0.25 * std or images.min() >= 0:
        return False
    return bool(images.mean((1, 2, 3)).std() < 0.2 * std)


def _outside(images: Tensor, image_range: str, margin: float = SLACK) -> Tensor:
    """Which values lie outside of the range by more than `margin` times its width."""
    low, high = BOUNDS[image_range]
    return (images < low - margin * (high - low)) | (images > high + margin * (high - low))


def _share(which: Tensor) -> float:
    return int(which.sum()) / which.numel()


def _guess(path: object, images: Tensor) -> str:
    """Guess the range of float images from where most values lie. Raises UsageError if they do not determine
    it."""
    low, high = float(images.min()), float(images.max())
    if high > 0.05 and _share(_outside(images, "unit")) <= FEW and not _outside(images, "unit", 0.5).any():
        return "unit"
    reach = max(-low, high)
    if (
        low < 0
        and reach <= BOUNDS["normalised"][1]
        and images.std() >= 0.75
        and _share(images.abs() > 1.25) >= 0.02
    ):
        return "normalised"
    counts = ", ".join(
        f"{int(_outside(images, name).sum()):,} outside [{BOUNDS[name][0]}, 1]" for name in ("unit", "signed")
    )
    found = f"values {low:g} to {high:g} do not tell their range ({counts} of {images.numel():,})"
    raise UsageError(f"{path}: {found}; name it: --image-range {' '.join(RANGES)}")


def _check_named(path: object, images: Tensor, image_range: str) -> None:
    share, far = _share(_outside(images, image_range)), _share(_outside(images, image_range, 0.5))
    if share > OUTSIDE[image_range] or far > FAR_OUTSIDE:
        low, high = BOUNDS[image_range]
        found = f"values {float(images.min()):g} to {float(images.max()):g} in {path}"
        allowed = f"at most {100 * OUTSIDE[image_range]:.0f} % outside, and {100 * FAR_OUTSIDE:.0f} %"
        raise UsageError(
            f"--image-range {image_range}: found {found}, {100 * share:.0f} % of them outside, expected "
            f"{low} to {high} with {allowed} by more than half the range"
        )


def _clipped(path: object, images: Tensor, image_range: str) -> Tensor:
    """Clip values outside of the range by more than its slack, and say how many there were and how far
    outside."""
    low, high = BOUNDS[image_range]
    outside = _outside(images, image_range)
    if not outside.any():
        return images
    far = max(low - float(images.min()), float(images.max()) - high)
    tell(
        f"{path}: {int(outside.sum()):,} of {images.numel():,} values lie outside [{low}, {high}], by up to "
        f"{far:.2g}; they are clipped"
    )
    return torch.where(outside, images.clamp(low, high), images)
