"""Differentiable siamese augmentation (DSA, Zhao & Bilen 2021, arXiv:2102.08259) and CutMix (Yun et al. 2019,
arXiv:1905.04899).

Images are (B, C, H, W). Those of a classifier are normalised, and DSA's brightness shift and zero fill are in
these units; those of a discriminator are in [-1, 1]. Operations are pure functions of the images and of
parameters with leading dimension n: 1 (one draw for the batch, "siamese") or B (one draw for each image).
Parameters are drawn once, on the device, and kept in an Augmentation, which applies the operations.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils import UsageError

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Augmentation:
    """Operations in order, each with the parameters drawn for it: operation(images, *parameters)."""

    operations: tuple[Callable[..., Tensor], ...] = ()
    parameters: tuple[tuple[Tensor, ...], ...] = ()

    def __call__(self, images: Tensor) -> Tensor:
        """The images (B, C, H, W) under all operations."""
        for operation, parameters in zip(self.operations, self.parameters, strict=True):
            images = operation(images, *parameters)
        return images

    def then(self, other: "Augmentation") -> "Augmentation":
        """This one, then the other."""
        return Augmentation(self.operations + other.operations, self.parameters + other.parameters)

    @staticmethod
    def joined(parts: Sequence["Augmentation"]) -> "Augmentation":
        """One augmentation for concatenated batches, from those of the batches, whose parameters are drawn
        for each image.

        Raises ValueError if their operations differ.
        """
        operations = parts[0].operations
        if any(part.operations != operations for part in parts):
            raise ValueError("batches under different operations cannot be augmented as one")
        columns = zip(*(part.parameters for part in parts), strict=True)
        return Augmentation(
            operations, tuple(tuple(map(torch.cat, zip(*column, strict=True))) for column in columns)
        )


OPERATIONS = ("flip", "color", "crop", "scale", "rotate", "cutout")
GEOMETRIC = ("crop", "scale", "rotate")  # of which the composition "dim" applies one
COMPOSITIONS = ("dim", "dc")

BRIGHTNESS = 1.0  # width of the uniform shift, centred on 0
SATURATION = 2.0
CONTRAST = 0.5
CROP = 0.125  # largest shift, as a share of the side
CUTOUT = 0.5  # side of the square, as a share of the image's
SCALE = 1.2
ROTATION = 15.0  # degrees


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror left and right where `flipped` (n, 1, 1, 1) is true."""
    return torch.where(flipped, images.flip(3), images)


def brightness(images: Tensor, shift: Tensor) -> Tensor:
    """Add `shift` (n, 1, 1, 1)."""
    return images + shift


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Stretch each pixel about its mean over channels by `factor` (n, 1, 1, 1); gray stays as it is."""
    mean = images.mean(1, keepdim=True)
    return (images - mean) * factor + mean


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Stretch each image about its mean by `factor` (n, 1, 1, 1)."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return (images - mean) * factor + mean


def color(images: Tensor, shift: Tensor, colour: Tensor, stretch: Tensor) -> Tensor:
    """DSA's three colour steps in their order: brightness, saturation, contrast."""
    return contrast(saturation(brightness(images, shift), colour), stretch)


def crop(images: Tensor, shift: Tensor) -> Tensor:
    """Translate by `shift` (n, 2) whole pixels: pixel (i, j) comes from (i + shift[0], j + shift[1]), or is
    zero if that is outside."""
    batch, channels, height, width = images.shape
    shift = shift.expand(batch, 2)
    rows = torch.arange(height, device=images.device) + shift[:, :1]  # (B, H): the source row of each row
    columns = torch.arange(width, device=images.device) + shift[:, 1:]  # (B, W)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    rows = rows.clamp(0, height - 1)[:, None, :, None].expand(-1, channels, -1, width)
    columns = columns.clamp(0, width - 1)[:, None, None, :].expand(-1, channels, height, -1)
    return images.gather(2, rows).gather(3, columns) * inside[:, None]


def cutout(images: Tensor, centre: Tensor) -> Tensor:
    """Zero a square of half the side, centred on `centre` (n, 2) (row, column). The square may cross the
    border."""
    height, width = images.shape[2:]
    size = int(height * CUTOUT + 0.5)

    def covered(length: int, middle: Tensor) -> Tensor:  # (n, length)
        offset = torch.arange(length, device=images.device) - (middle[:, None] - size // 2)
        return (offset >= 0) & (offset < size)

    hole = covered(height, centre[:, 0])[:, :, None] & covered(width, centre[:, 1])[:, None, :]  # (n, H, W)
    return images * ~hole[:, None]


def affine(images: Tensor, theta: Tensor) -> Tensor:
    """Resample at `theta` (n, 2, 3) in affine_grid's coordinates, bilinear, zero outside."""
    grid = F.affine_grid(theta.expand(len(images), 2, 3), images.shape, align_corners=False)
    return F.grid_sample(images, grid.to(images.dtype), align_corners=False)


def cutmix(images: Tensor, box: Tensor, partner: Tensor) -> Tensor:
    """Take the pixels where `box` (1, 1, H, W) is true from each image's partner (B,)."""
    return torch.where(box, images[partner], images)


def parse_strategy(strategy: str, flag: str = "DSA strategy") -> tuple[str, ...]:
    """Split a strategy such as "color_crop_cutout"; "none" is the empty one.

    Raises UsageError, which names `flag`, for an unknown operation.
    """
    names = () if strategy == "none" else tuple(strategy.split("_"))
    for name in names:
        if name not in OPERATIONS:
            raise UsageError(
                f"{flag} {strategy}: unknown operation {name!r}, expected some of {'_'.join(OPERATIONS)} or "
                "none"
            )
    return names


def choose_operations(strategy: str, composition: str, rng: torch.Generator | None = None) -> tuple[str, ...]:
    """Draw the operations of one batch, in order, on the host, since they determine which kernels are
    launched.

    composition "dim": flip, the three colour steps, *one* of crop, scale and rotate, then cutout; each only
    if `strategy` names it. composition "dc": *one* of the named operations, for the whole batch.
    """
    names = parse_strategy(strategy)
    group = names if composition == "dc" else tuple(name for name in names if name in GEOMETRIC)
    if len(group) > 1:
        group = (group[int(torch.randint(len(group), (), generator=rng))],)
    if composition == "dc":
        return group
    return tuple(name for name in OPERATIONS if name in (group if name in GEOMETRIC else names))


def draw_operations(
    names: tuple[str, ...], n: int, image_size: int, device: torch.device, rng: torch.Generator | None = None
) -> Augmentation:
    """Draw the parameters of `names` on the device for n = 1 (siamese) or n = B (per image)."""
    pairs = [_draw_operation(name, n, image_size, device, rng) for name in names]
    return Augmentation(*zip(*pairs, strict=True)) if pairs else Augmentation()


def _draw_operation(
    name: str, n: int, image_size: int, device: torch.device, rng: torch.Generator | None
) -> tuple[Callable[..., Tensor], tuple[Tensor, ...]]:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(n, *shape, device=device, generator=rng) * (high - low) + low

    def integers(low: int, high: int) -> Tensor:  # low..high, both included
        return torch.randint(low, high + 1, (n, 2), device=device, generator=rng)

    zero = torch.zeros(n, device=device)
    if name == "flip":
        flipped = uniform(0, 1, 1, 1, 1) < 0.5
        return flip, (flipped,)
    if name == "color":
        shift = uniform(-BRIGHTNESS / 2, BRIGHTNESS / 2, 1, 1, 1)
        colour = uniform(0, SATURATION, 1, 1, 1)
        stretch = uniform(CONTRAST, CONTRAST + 1, 1, 1, 1)
        return color, (shift, colour, stretch)
    if name == "crop":
        reach = int(image_size * CROP + 0.5)
        shift = integers(-reach, reach)
        return crop, (shift,)
    if name == "cutout":
        size = int(image_size * CUTOUT + 0.5)
        centre = integers(0, image_size - size % 2)
        return cutout, (centre,)
    if name == "scale":
        sx = uniform(1 / SCALE, SCALE)
        sy = uniform(1 / SCALE, SCALE)
        theta = torch.stack([sx, zero, zero, zero, sy, zero], 1).view(n, 2, 3)
    else:
        angle = uniform(-ROTATION, ROTATION) * (math.pi / 180)
        sine = angle.sin()
        cosine = angle.cos()
        theta = torch.stack([cosine, -sine, zero, sine, cosine, zero], 1).view(n, 2, 3)
    return affine, (theta,)


def draw_cutmix(
    batch: int, image_size: int, device: torch.device, rng: torch.Generator | None = None
) -> tuple[Augmentation, Tensor, Tensor]:
    """A random CutMix: (augmentation, partner (B,), share ()).

    The loss is share * CE(y) + (1 - share) * CE(y[partner]). A box of area 1 - lambda, lambda ~ U(0, 1) =
    Beta(1, 1), uniformly placed and clipped at the border, comes from the partner.
    """
    uniform = torch.rand(3, device=device, generator=rng)
    half = image_size * (1 - uniform[0]).sqrt() / 2
    centre = (uniform[1:] * image_size).floor()  # row, column
    low, high = (centre - half).clamp(min=0).floor(), (centre + half).clamp(max=image_size).floor()
    place = torch.arange(image_size, device=device)
    inside = (place >= low[:, None]) & (place < high[:, None])  # (2, side): rows, columns
    box = (inside[0, :, None] & inside[1])[None, None]  # (1, 1, side, side)
    partner = torch.rand(batch, device=device, generator=rng).argsort()
    return Augmentation((cutmix,), ((box, partner),)), partner, 1 - (high - low).prod() / image_size**2
