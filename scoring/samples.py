"""Example images kept with a row of results: some of each class, with real images and nearest training images
for comparison."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data import Data, ImageSet, to_float

# number of test images that give the usual distance from an unseen real image to its nearest training image
JUDGED = 500


def make_samples(images: Tensor, labels: Tensor, data: Data, per_class: int) -> dict | None:
    """Make the example images of a row from float images (N, C, H, W) in [-1, 1]: PNG grids in base64, a line
    for each class.

    "real": training images of the same classes. "nearest": the training image nearest to each image, by the
    euclidean distance of pixels. "distance_ratio": the median distance from an image to its nearest training
    image, divided by the same median of test images; a ratio well below 1 means that training images are
    memorised. These three are None if the training set was not read, and the ratio is None if most test
    images are training images. Returns None if a class has no image.
    """
    classes = labels.argmax(1) if labels.is_floating_point() else labels
    k = data.info.num_classes
    per_class = min(per_class, int(torch.bincount(classes, minlength=k).min()))
    if per_class == 0:
        return None
    shown = images[_first(classes, k, per_class)].clamp(-1, 1)
    samples = {
        "class_names": list(data.info.class_names),
        "size": data.info.image_size,
        "channels": data.info.channels,
        "per_class": per_class,
        "images": _grid(shown, k),
        "real": None,
        "nearest": None,
        "distance_ratio": None,
    }
    if data.train is not None:
        distance, index = nearest(shown, data.train)
        usual, _ = nearest(judges(data.evaluation_split[1]), data.train)
        samples["real"] = _grid(data.train.batch(_first(data.train.labels, k, per_class))[0], k)
        samples["nearest"] = _grid(data.train.batch(index)[0], k)
        samples["distance_ratio"] = distance_ratio(distance, usual)
    return samples


def judges(images: ImageSet) -> Tensor:
    """About JUDGED images (N, C, H, W) in [-1, 1] from all over a set, which may be sorted by class."""
    return to_float(images.images[:: -(-len(images) // JUDGED)])


def distance_ratio(distance: Tensor, usual: Tensor) -> float | None:
    """The ratio of two medians of distances (N,) and (M,); None if the second is 0."""
    return round(float(distance.median() / usual.median()), 4) if usual.median() > 0 else None


@torch.no_grad()
def nearest(queries: Tensor, images: ImageSet, batch_size: int = 5000) -> tuple[Tensor, Tensor]:
    """Find the image nearest to each float query (M, C, H, W) in [-1, 1]: its euclidean distance (M,) and its
    index (M,)."""
    flat = queries.flatten(1)
    least = torch.full((len(flat),), torch.inf, device=flat.device)
    best = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
    for part in torch.arange(len(images), device=flat.device).split(batch_size):
        distance, index = torch.cdist(flat, images.batch(part)[0].flatten(1)).min(1)
        best = torch.where(distance < least, part[index], best)
        least = torch.minimum(distance, least)
    return least, best


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
