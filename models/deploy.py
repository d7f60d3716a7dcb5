"""Deployed generators: several that divide the classes, one whose images a teacher filters, one with stored
latents.

Each has a generator's method sample(y) -> images. OwnClasses renames the classes of a generator that knows
some of them alone.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data import to_uint8
from engine.runtime import Runtime
from engine.seeds import derive_seed
from models.gan import GAN

LATENT_LR, LATENT_BETAS = 0.03, (0.9, 0.9)  # of the Adam that optimises latents

# Batch sizes to which a varying number of images is padded, since cuDNN benchmarks its kernels anew for each
# size that it meets.
SIZES = (16, 32, 64)  # and multiples of the last


def padded_size(n: int) -> int:
    """The batch size in which `n` images are generated: the next of SIZES or the next multiple of the
    last."""
    return next((size for size in SIZES if n <= size), -(-n // SIZES[-1]) * SIZES[-1])


def sample_padded(generator: nn.Module, y: Tensor, rng: torch.Generator | None) -> Tensor:
    """generator.sample(y, rng); on CUDA it is computed in a batch of padded_size(len(y)), with the same
    random numbers.

    In training mode the batch is not padded, since the additional rows would count in the BatchNorm
    statistics. Nor is it padded for generators without z_dim, which sample in another way.
    """
    if not y.is_cuda or generator.training or not hasattr(generator, "z_dim"):
        return generator.sample(y, rng)
    z, more = (
        torch.randn(len(y), generator.z_dim, device=y.device, generator=rng),
        padded_size(len(y)) - len(y),
    )
    return generator(F.pad(z, (0, 0, 0, more)), torch.cat([y, y[-1:].expand(more)]))[: len(y)]


class ByClass(nn.Module):
    """Generators of different classes; each label goes to the generator of its class. classes: the labels of
    each generator."""

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
            raise ValueError(
                f"labels {sorted(set(y[self.owner[y] < 0].tolist()))}: none of the generators makes these "
                "classes"
            )
        images = torch.cat(
            [
                sample_padded(g, y[place], rng)
                for g, place in zip(self.generators, places, strict=True)
                if len(place)
            ]
        )
        return torch.empty_like(images).index_copy_(0, torch.cat(places), images)


class OwnClasses(nn.Module):
    """A generator that has tables for its own `classes` alone, asked for by their labels among the
    `num_classes` of the set.

    Raises ValueError if it is asked for another class; on CUDA, where that would wait for the device, its
    lookup fails there.
    """

    def __init__(self, generator: nn.Module, classes: Sequence[int], num_classes: int):
        super().__init__()
        self.generator, self.num_classes, self.z_dim, self.classes = (
            generator,
            num_classes,
            generator.z_dim,
            list(classes),
        )
        row_of = torch.full(
            (num_classes,), generator.num_classes
        )  # of other classes: a row that no table has
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
    """A generator whose images are drawn again until a teacher gives their class a probability of `threshold`
    or more.

    An image is drawn again at most `redraws` times. If none of them passes, the one of which the teacher was
    surest is kept, so that the number of images of each class stays as asked for. teacher: a classifier of
    images in [-1, 1]. For eval mode only.
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


class Latents(nn.Module):
    """A frozen generator whose latents, some of each class, are the parameters; it samples from these alone.

    In the place of pixels: Zhao & Bilen 2022 (IT-GAN, arXiv:2204.07513), Cazenavette et al. 2023 (GLaD,
    arXiv:2305.01649). generator: takes (z, y), and stays in eval mode. values: (R, n, z_dim), n of each of
    the R `classes`, None = all. Its one-hot code overwrites the first `overwritten` entries of each, which
    are not stored.
    """

    def __init__(
        self, generator: nn.Module, values: Tensor, overwritten: int, classes: Sequence[int] | None = None
    ):
        super().__init__()
        self.held = [generator.eval()]  # in a list, so that its weights are not among the parameters
        self.num_classes, self.overwritten = generator.num_classes, overwritten
        self.classes = list(range(self.num_classes) if classes is None else classes)
        self.values = nn.Parameter(values)
        row_of = torch.zeros(self.num_classes, dtype=torch.long, device=values.device)
        row_of[self.classes] = torch.arange(len(self.classes), device=values.device)
        self.register_buffer("row_of", row_of, persistent=False)

    @classmethod
    def drawn(
        cls,
        generator: nn.Module,
        n: int,
        seed: int,
        device: torch.device,
        overwritten: int,
        classes: Sequence[int] | None = None,
    ):
        """With `n` random latents of each class."""
        size = len(range(generator.num_classes) if classes is None else classes), n, generator.z_dim
        values = torch.randn(size, generator=torch.Generator().manual_seed(derive_seed(seed, "latents", n)))
        return cls(generator, values.to(device), overwritten, classes)

    @classmethod
    def decoded(cls, generator: nn.Module, stored: Tensor, classes: Sequence[int] | None = None):
        """With the latents that stored() gave, on the CPU."""
        overwritten = generator.z_dim - stored.shape[-1]
        return cls(generator, F.pad(stored.float(), (overwritten, 0)), overwritten, classes)

    def _apply(self, fn, recurse: bool = True):
        self.held[0]._apply(fn, recurse)  # it moves with its latents
        return super()._apply(fn, recurse)

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,): those of a class at random, each again only after
        all others."""
        rows, (r, n, _) = self.row_of[y], self.values.shape
        order = torch.rand(r, n, device=y.device, generator=rng).argsort(1)
        number = (F.one_hot(rows, r).cumsum(0) - 1).gather(1, rows[:, None]).squeeze(
            1
        ) % n  # of an image in its class
        return self._made(self.values[rows, order[rows, number]], y)

    def _made(self, z: Tensor, y: Tensor, batch_size: int = 500) -> Tensor:
        """The images of latents z (B, z_dim) and labels y (B,), in batches, which are padded on CUDA as in
        sample_padded."""
        more = padded_size(len(y)) - len(y) if y.is_cuda else 0
        if more:
            z, y = F.pad(z, (0, 0, 0, more)), torch.cat([y, y[-1:].expand(more)])
        images = [self.held[0](*part) for part in zip(z.split(batch_size), y.split(batch_size), strict=True)]
        return torch.cat(images)[: len(y) - more]

    def in_training(self) -> GAN:
        """The latents with their optimiser, for matching alone (pool_match.py)."""
        return GAN(self, None, LATENT_LR, betas=LATENT_BETAS)

    def stored(self) -> Tensor:
        """What is kept of the latents: float16 (R, n, z_dim - overwritten)."""
        return self.values.detach()[..., self.overwritten :].half()

    def images(self, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """The images of all latents as they are stored, uint8 (N, C, H, W) sorted by class, and their labels
        (N,)."""
        labels = torch.tensor(self.classes, device=runtime.device).repeat_interleave(self.values.shape[1])
        with torch.no_grad(), runtime.autocast():
            latents = F.pad(self.stored().float(), (self.overwritten, 0)).flatten(0, 1)
            return to_uint8(self._made(latents, labels).float()), labels
