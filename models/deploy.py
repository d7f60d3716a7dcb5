"""Deployed generators: several that share a byte budget or divide the classes, or one whose images a teacher filters.

Each has a generator's method sample(y) -> images. OwnClasses renames the classes of a generator that knows some of them alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Batch sizes to which a varying number of images is padded, since cuDNN benchmarks its kernels anew for each size that it meets.
SIZES = (16, 32, 64)  # and multiples of the last


def padded_size(n: int) -> int:
    """The batch size in which `n` images are generated: the next of SIZES or the next multiple of the last."""
    return next((size for size in SIZES if n <= size), -(-n // SIZES[-1]) * SIZES[-1])


def sample_padded(generator: nn.Module, y: Tensor, rng: torch.Generator | None) -> Tensor:
    """generator.sample(y, rng); on CUDA it is computed in a batch of padded_size(len(y)), with the same random numbers.

    In training mode the batch is not padded, since the additional rows would count in the BatchNorm statistics. Nor is it padded for
    generators without z_dim, which sample in another way.
    """
    if not y.is_cuda or generator.training or not hasattr(generator, "z_dim"):
        return generator.sample(y, rng)
    z, more = torch.randn(len(y), generator.z_dim, device=y.device, generator=rng), padded_size(len(y)) - len(y)
    return generator(F.pad(z, (0, 0, 0, more)), torch.cat([y, y[-1:].expand(more)]))[: len(y)]


class Several(nn.Module):
    """Generators of the same classes. The labels asked for are divided among them at random, in equal numbers."""

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
    """Generators of different classes; each label goes to the generator of its class. classes: the labels of each generator."""

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
        if sum(map(len, places)) < len(y):
            raise ValueError(f"labels {sorted(set(y[self.owner[y] < 0].tolist()))}: none of the generators makes these classes")
        images = torch.cat([sample_padded(g, y[place], rng) for g, place in zip(self.generators, places, strict=True) if len(place)])
        return torch.empty_like(images).index_copy_(0, torch.cat(places), images)


class OwnClasses(nn.Module):
    """A generator that has tables for its own `classes` alone, asked for by their labels among the `num_classes` of the set.

    Raises ValueError if it is asked for another class; on CUDA, where that would wait for the device, its lookup fails there.
    """

    def __init__(self, generator: nn.Module, classes: Sequence[int], num_classes: int):
        super().__init__()
        self.generator, self.num_classes, self.z_dim, self.classes = generator, num_classes, generator.z_dim, list(classes)
        row_of = torch.full((num_classes,), generator.num_classes)  # of other classes: a row that no table has
        row_of[self.classes] = torch.arange(len(self.classes))
        self.register_buffer("row_of", row_of, persistent=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """z: (B, z_dim), y: labels (B,) -> images (B, C, H, W)."""
        rows = self.row_of[y]
        if not y.is_cuda and len(y) and int(rows.max()) == self.generator.num_classes:
            found = sorted(set(y.tolist()) - set(self.classes))
            raise ValueError(f"labels {found}: expected the classes of this generator, {self.classes}")
        return self.generator(z, rows)

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,), z drawn on y's device, from `rng` if given."""
        return self(torch.randn(len(y), self.z_dim, device=y.device, generator=rng), y)


class Filtered(nn.Module):
    """A generator whose images are drawn again until a teacher gives their class a probability of `threshold` or more.

    An image is drawn again at most `redraws` times. If none of them passes, the one of which the teacher was surest is kept, so that the
    number of images of each class stays as asked for. teacher: a classifier of images in [-1, 1]. For eval mode only.
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
