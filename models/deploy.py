"""Generators as they are deployed: several that share a budget of bytes or the classes, or one whose images a teacher filters.

Each samples as a generator does: sample(y) -> images.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Batch sizes of a generator where the number of images varies. cuDNN measures its kernels anew for each size that it meets.
SIZES = (16, 32, 64)  # and multiples of the last


def padded_size(n: int) -> int:
    """The size of a batch that `n` images are made in."""
    return next((size for size in SIZES if n <= size), -(-n // SIZES[-1]) * SIZES[-1])


def sample_padded(generator: nn.Module, y: Tensor, rng: torch.Generator | None) -> Tensor:
    """generator.sample(y, rng), on CUDA in a batch of padded_size(len(y)), with the same random numbers.

    In training mode, or where a generator samples in another way, the batch stays as it is: rows that are thrown away would count.
    """
    if not y.is_cuda or generator.training or not hasattr(generator, "z_dim"):
        return generator.sample(y, rng)
    z, more = torch.randn(len(y), generator.z_dim, device=y.device, generator=rng), padded_size(len(y)) - len(y)
    return generator(F.pad(z, (0, 0, 0, more)), F.pad(y, (0, more)))[: len(y)]


class Several(nn.Module):
    """Generators of the same images; each label asked for goes to one of them, drawn at random, in equal numbers."""

    def __init__(self, generators: Sequence[nn.Module]):
        super().__init__()
        self.generators = nn.ModuleList(generators)
        self.num_classes = generators[0].num_classes

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,)."""
        parts = torch.randperm(len(y), device=y.device, generator=rng).tensor_split(len(self.generators))
        images = torch.cat([sample_padded(g, y[part], rng) for g, part in zip(self.generators, parts, strict=True) if len(part)])
        return torch.empty_like(images).index_copy_(0, torch.cat(parts), images)


class ByClass(nn.Module):
    """Generators of other classes each; a label goes to the generator of its class. classes: those of each generator."""

    def __init__(self, generators: Sequence[nn.Module], classes: Sequence[Sequence[int]]):
        super().__init__()
        self.generators = nn.ModuleList(generators)
        self.num_classes = generators[0].num_classes
        owner = torch.full((self.num_classes,), -1)
        for number, labels in enumerate(classes):
            owner[list(labels)] = number
        self.register_buffer("owner", owner)

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,)."""
        places = [torch.where(self.owner[y] == number)[0] for number in range(len(self.generators))]
        images = torch.cat([sample_padded(g, y[place], rng) for g, place in zip(self.generators, places, strict=True) if len(place)])
        return torch.empty_like(images).index_copy_(0, torch.cat(places), images)


class Filtered(nn.Module):
    """A generator whose images are drawn again until a teacher gives their class a probability of `threshold` or more.

    An image is drawn `redraws` times more at most; then the one that the teacher was surest of stays, so that the classes
    stay as they were asked for. teacher: a classifier of images in [-1, 1]. In eval mode only.
    """

    def __init__(self, generator: nn.Module, teacher: nn.Module, threshold: float, redraws: int = 10):
        super().__init__()
        self.generator, self.teacher, self.threshold, self.redraws = generator, teacher, threshold, redraws
        self.num_classes = generator.num_classes

    @torch.no_grad()
    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,)."""
        images = self.generator.sample(y, rng)
        confidence = self._confidence(images, y)
        for _ in range(self.redraws):
            (low,) = torch.where(confidence < self.threshold)
            if len(low) == 0:
                break
            fresh = sample_padded(self.generator, y[low], rng)
            found = self._confidence(fresh, y[low])
            better = found > confidence[low]
            images[low] = torch.where(better[:, None, None, None], fresh, images[low])
            confidence[low] = torch.where(better, found, confidence[low])
        return images

    def _confidence(self, images: Tensor, y: Tensor) -> Tensor:
        n = len(y)
        if images.is_cuda:
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, padded_size(n) - n))
        return self.teacher(images)[:n].softmax(1).gather(1, y[:, None]).squeeze(1)  # (B,)
