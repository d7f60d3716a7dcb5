"""Example images kept with a row of results: some of each class, with real images for comparison."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import Data


def make_samples(images: Tensor, labels: Tensor, data: Data, per_class: int) -> dict | None:
    """Make the example images of a row from float images (N, C, H, W) in [-1, 1]: PNG grids in base64, a line
    for each class.

    "real": training images of the same classes; None if the training set was not read. Returns None if a
    class has no image.
    """
    classes = labels.argmax(1) if labels.is_floating_point() else labels
    k = data.info.num_classes
    per_class = min(per_class, int(torch.bincount(classes, minlength=k).min()))
    if per_class == 0:
        return None
    shown = images[_first(classes, k, per_class)].clamp(-1, 1)
    real = data.train and data.train.batch(_first(data.train.labels, k, per_class))[0]
    return {
        "class_names": list(data.info.class_names),
        "size": data.info.image_size,
        "channels": data.info.channels,
        "per_class": per_class,
        "images": _grid(shown, k),
        "real": None if real is None else _grid(real, k),
    }


def _first(classes: Tensor, num_classes: int, per_class: int) -> Tensor:
    """Indices of the first images of each class, class by class."""
    return torch.cat([(classes == label).nonzero().flatten()[:per_class] for label in range(num_classes)])


def _grid(images: Tensor, lines: int) -> str:
    """Encode images (lines * columns, C, H, W) in [-1, 1] as one PNG in base64, without space between
    them."""
    n, channels, height, width = images.shape
    pixels = ((images.float() + 1) * 127.5).round().byte().cpu()
    grid = (
        pixels.view(lines, n // lines, channels, height, width)
        .permute(0, 3, 1, 4, 2)
        .reshape(lines * height, -1, channels)
        .numpy()
    )
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(grid.squeeze(2) if channels == 1 else grid)).save(
        file, "PNG", optimize=True
    )
    return base64.b64encode(file.getvalue()).decode()
