"""Deployed generators: one for each part of the classes, one whose images are filtered, stored latents.

Each has a generator's method sample(y) -> images. OwnClasses maps the labels of a set to those of a generator
that knows some of its classes alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import to_uint8
from engine.runtime import Runtime
from engine.seeds import derive_seed
from models.gan import GAN

LATENT_LR = 0.03  # of the Adam that optimises latents
LATENT_BETAS = (0.9, 0.9)

# Batch sizes to which a varying number of images is padded, since cuDNN benchmarks its kernels anew for each
# size that it meets.
SIZES = (16, 32, 64)  # and multiples of the last


def padded_size(n: int) -> int:
    """The batch size in which `n` images are generated: the next of SIZES or multiple of the last."""
    return next((size for size in SIZES if n <= size), -(-n // SIZES[-1]) * SIZES[-1])


def sample_padded(generator: nn.Module, y: Tensor, rng: torch.Generator | None) -> Tensor:
    """generator.sample(y, rng); on CUDA in a batch of padded_size(len(y)), with the same random numbers.

    In training mode the batch is not padded, since the additional rows would count in the BatchNorm
    statistics. Nor is it padded for generators without z_dim, which sample in another way.
    """
    if not y.is_cuda or generator.training or not hasattr(generator, "z_dim"):
        return generator.sample(y, rng)
    z = torch.randn(len(y), generator.z_dim, device=y.device, generator=rng)
    more = padded_size(len(y)) - len(y)
    return generator(F.pad(z, (0, 0, 0, more)), torch.cat([y, y[-1:].expand(more)]))[: len(y)]


class ByClass(nn.Module):
    """Generators of different classes; each label goes to the generator of its class.

    classes: the labels of each generator.
    """

    fixed_sizes = False  # how many labels go to each is read from the device, which no CUDA graph can hold

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
            missing = sorted(set(y[self.owner[y] < 0].tolist()))
            raise ValueError(f"labels {missing}: none of the generators makes these classes")
        pairs = zip(self.generators, places, strict=True)
        images = torch.cat([sample_padded(g, y[place], rng) for g, place in pairs if len(place)])
        return torch.empty_like(images).index_copy_(0, torch.cat(places), images)


class OwnClasses(nn.Module):
    """A generator that knows some `classes` of a set alone, called with labels of all `num_classes` of it.

    Raises ValueError if it is asked for another class; on CUDA, where that would wait for the device, its
    lookup fails there.
    """

    def __init__(self, generator: nn.Module, classes: Sequence[int], num_classes: int):
        super().__init__()
        self.generator = generator
        self.num_classes = num_classes
        self.z_dim = generator.z_dim
        self.classes = list(classes)
        rows = torch.full((num_classes,), generator.num_classes)  # of other classes: a row that no table has
        rows[self.classes] = torch.arange(len(self.classes))
        self.register_buffer("rows", rows, persistent=False)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        """z: (B, z_dim), y: labels (B,) -> images (B, C, H, W)."""
        rows = self.rows[y]
        if not y.is_cuda and len(y) and int(rows.max()) == self.generator.num_classes:
            others = sorted(set(y.tolist()) - set(self.classes))
            raise ValueError(f"labels {others}: expected the classes of this generator, {self.classes}")
        return self.generator(z, rows)

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,), z drawn on y's device, from `rng` if given."""
        return self(torch.randn(len(y), self.z_dim, device=y.device, generator=rng), y)


class Filtered(nn.Module):
    """A generator whose images are sampled again while a teacher gives their class less than `threshold`.

    An image is sampled again at most `redraws` times. If none of them reaches that probability, the one with
    the highest is kept, so that each class has as many images as labels. teacher: a classifier of images in
    [-1, 1]. For eval mode only.
    """

    def __init__(self, generator: nn.Module, teacher: nn.Module, threshold: float, redraws: int = 10):
        super().__init__()
        self.generator = generator
        self.teacher = teacher
        self.threshold = threshold
        self.redraws = redraws
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
            fresh_confidence = self._confidence(fresh, y[low])
            better = fresh_confidence > confidence[low]
            images[low] = torch.where(better[:, None, None, None], fresh, images[low])
            confidence[low] = torch.where(better, fresh_confidence, confidence[low])
        return images

    def _confidence(self, images: Tensor, y: Tensor) -> Tensor:
        n = len(y)
        if images.is_cuda:
            images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, padded_size(n) - n))
        return self.teacher(images)[:n].softmax(1).gather(1, y[:, None]).squeeze(1)  # (B,)


class Latents(nn.Module):
    """A frozen generator whose latents, `n` of each class, are the parameters; it samples from these alone.

    In the place of pixels: Zhao & Bilen 2022 (IT-GAN, arXiv:2204.07513), Cazenavette et al. 2023 (GLaD,
    arXiv:2305.01649). generator: takes (z, y), and stays in eval mode. Its one-hot code overwrites the first
    `overwritten` entries of each latent, which are not stored. The latents start at random, from `seed`.
    """

    def __init__(self, generator: nn.Module, n: int, seed: int, device: torch.device, overwritten: int):
        super().__init__()
        self.held = [generator.eval()]  # in a list, so that its weights are not among the parameters
        self.num_classes = generator.num_classes
        self.overwritten = overwritten
        rng = torch.Generator().manual_seed(derive_seed(seed, "latents", n))
        values = torch.randn(self.num_classes, n, generator.z_dim, generator=rng)
        self.values = nn.Parameter(values.to(device))

    def _apply(self, fn, recurse: bool = True):
        self.held[0]._apply(fn, recurse)  # it moves with its latents
        return super()._apply(fn, recurse)

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,).

        Those of a class come in random order, each again only after all others.
        """
        num_classes, n, _ = self.values.shape
        order = torch.rand(num_classes, n, device=y.device, generator=rng).argsort(1)
        number = (F.one_hot(y, num_classes).cumsum(0) - 1).gather(1, y[:, None]).squeeze(1)  # in its class
        return self._images(self.values[y, order[y, number % n]], y)

    def _images(self, z: Tensor, y: Tensor, batch_size: int = 500) -> Tensor:
        """The images of latents z (B, z_dim) and labels y (B,), in batches that are padded on CUDA."""
        more = padded_size(len(y)) - len(y) if y.is_cuda else 0
        if more:
            z = F.pad(z, (0, 0, 0, more))
            y = torch.cat([y, y[-1:].expand(more)])
        images = [self.held[0](*part) for part in zip(z.split(batch_size), y.split(batch_size), strict=True)]
        return torch.cat(images)[: len(y) - more]

    def in_training(self) -> GAN:
        """The latents with their optimiser, for matching alone (pool_match.py)."""
        return GAN(self, None, LATENT_LR, betas=LATENT_BETAS)

    def stored(self) -> Tensor:
        """What is kept of the latents: float16 (num_classes, n, z_dim - overwritten)."""
        return self.values.detach()[..., self.overwritten :].half()

    def images(self, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """The images of all stored latents, uint8 (N, C, H, W) sorted by class, and their labels (N,)."""
        labels = torch.arange(self.num_classes, device=runtime.device).repeat_interleave(self.values.shape[1])
        with torch.no_grad(), runtime.autocast():
            latents = F.pad(self.stored().float(), (self.overwritten, 0)).flatten(0, 1)
            return to_uint8(self._images(latents, labels).float()), labels
