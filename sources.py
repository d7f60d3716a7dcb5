"""What classifiers are trained on: generated images, real ones, chosen ones, stored ones, files; with labels of their own or a teacher's.

A source has `per_epoch`, the images of an epoch, and open(seed, draws) -> Opened for the classifier of `seed`. Images are float32
(N, C, H, W) in [-1, 1], labels (N,) or soft (N, K).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data import DataInfo, ImageSet, balanced_epochs, to_float
from models import Classifier, SavedClassifier
from runtime import Draws, Runtime
from storage import LENGTH_BYTES, decode_images, encode_images, make_codec, num_bytes
from utils import UsageError, derive_seed, eval_mode, file_hash


class Opened(NamedTuple):
    """Endless epochs of images and labels, and what they are drawn from.

    num_images: different images that are stored, None where they are generated. num_bytes: what is stored.
    """

    epochs: Iterator[tuple[Tensor, Tensor]]
    num_images: int | None
    num_bytes: int


class Fixed:
    """A set of images, the same at each epoch. num_bytes: what it is stored in (default: uint8, labels implied by their order)."""

    def __init__(self, images: Tensor, labels: Tensor, num_bytes: int | None = None):
        self.images, self.labels, self.per_epoch = images, labels, len(labels)
        self.num_bytes = images.numel() if num_bytes is None else num_bytes

    def open(self, seed: int, draws: Draws) -> Opened:
        """The same for each seed."""
        return Opened(itertools.repeat((self.images, self.labels)), len(self.labels), self.num_bytes)


class Generated:
    """`ipc` generated images of each class, fresh at each epoch; with `fixed` drawn once, as uint8, from `seed` or for each classifier."""

    def __init__(self, generator: nn.Module, ipc: int, fixed: bool, num_bytes: int, runtime: Runtime, seed: int | None = None):
        self.generator, self.ipc, self.fixed, self.num_bytes, self.runtime, self.seed = generator, ipc, fixed, num_bytes, runtime, seed
        self.per_epoch = generator.num_classes * ipc

    def open(self, seed: int, draws: Draws) -> Opened:
        """The stream's latents come from `draws`, a fixed set's from `seed`."""
        if self.fixed:
            images, labels = draw_fixed(self.generator, self.ipc, seed if self.seed is None else self.seed, self.runtime)
            return Opened(itertools.repeat((to_float(images), labels)), None, self.num_bytes)
        labels = torch.arange(self.generator.num_classes, device=self.runtime.device).repeat_interleave(self.ipc)
        return Opened(
            ((generate(self.generator, labels, draws.device, self.runtime), labels) for _ in itertools.count()), None, self.num_bytes
        )


class Real:
    """Real images: `ipc` of each class at each epoch in shuffled passes over the set; with `fixed` a random `ipc` of each for good."""

    def __init__(self, images: ImageSet, ipc: int, num_classes: int, fixed: bool = False):
        self.images, self.ipc, self.num_classes, self.fixed = images, ipc, num_classes, fixed
        self.per_epoch = num_classes * ipc

    def open(self, seed: int, draws: Draws) -> Opened:
        """Order and choice come from `seed`."""
        order = balanced_epochs(self.images.labels, self.ipc, self.num_classes, seed, "random-real" if self.fixed else "real")
        if self.fixed:
            images, labels = self.images.batch(next(order))
            return Opened(itertools.repeat((images, labels)), len(labels), images.numel())
        return Opened((self.images.batch(index) for index in order), len(self.images), self.images.images.numel())


class WithinBytes:
    """As many random real images as fit `max_bytes`, an equal part of it for each class, stored with `codec` and decoded as stored.

    At each epoch `ipc` of each class, in shuffled passes over what is stored, so that steps and images seen are those of a stream.
    item_bytes: what is stored with each image beside its code, such as soft labels.
    """

    def __init__(self, images: ImageSet, ipc: int, info: DataInfo, max_bytes: int, codec: str, quality: int, item_bytes: int = 0):
        self.images, self.ipc, self.info, self.max_bytes, self.item_bytes = images, ipc, info, max_bytes, item_bytes
        self.codec, self.per_epoch = make_codec(codec, quality, info.channels), info.num_classes * ipc

    def open(self, seed: int, draws: Draws) -> Opened:
        """The choice and the order come from `seed`. Raises UsageError where not one image of each class fits."""
        stored, num_bytes = self.choose(seed)
        order = balanced_epochs(stored.labels, self.ipc, self.info.num_classes, seed, "real")
        return Opened((stored.batch(index) for index in order), len(stored), num_bytes)

    def choose(self, seed: int) -> tuple[ImageSet, int]:
        """What is stored, and its bytes without item_bytes."""
        rng = torch.Generator().manual_seed(derive_seed(seed, "within bytes"))
        shared = self.codec.shared if self.codec else 0
        share, kept, sizes = (self.max_bytes - shared) // self.info.num_classes, [], []
        labels = self.images.labels.cpu()
        for label in range(self.info.num_classes):
            room, members = share, (labels == label).nonzero().flatten()
            for index in members[torch.randperm(len(members), generator=rng)]:
                pixels = self.images.images[index : index + 1]
                code = encode_images(self.codec, pixels)[0] if self.codec else None
                size = pixels.numel() if code is None else len(code) + LENGTH_BYTES
                room -= size + self.item_bytes
                if room < 0:
                    break
                image = pixels if code is None else decode_images(self.codec, [code], self.info).to(pixels.device)
                kept.append((image, label)), sizes.append(size)
            if not kept or kept[-1][1] != label:
                raise UsageError(f"--match-bytes: {share} bytes for a class hold no image, expected {size + self.item_bytes} or more")
        images, classes = zip(*kept, strict=True)
        chosen = ImageSet(torch.cat(images), torch.tensor(classes, device=self.images.labels.device))
        return chosen, sum(sizes) + shared


@dataclass(frozen=True)
class Teacher:
    """A trained classifier of the same classes; its labels are softmax(logits / temperature). about: what a row says of it."""

    classifier: Classifier
    num_bytes: int
    temperature: float
    about: dict

    @classmethod
    def of(cls, saved: SavedClassifier, path: str, temperature: float, runtime: Runtime) -> "Teacher":
        """The teacher in the file at `path`."""
        about = {"teacher": saved.network, "teacher_sha256": file_hash(path)}
        return cls(runtime.place(saved.classifier), num_bytes(saved.classifier), temperature, about)

    @torch.no_grad()
    def labels(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Of images (N, C, H, W) in [-1, 1]: probabilities (N, K) float32, in eval mode."""
        with eval_mode(self.classifier):
            return torch.cat([(self.classifier(part) / self.temperature).softmax(1) for part in images.split(batch_size)])


class Labelled:
    """A source with a teacher's labels.

    Beside stored images their labels are stored; a generator needs the teacher wherever it is deployed: teacher_bytes.
    """

    def __init__(self, source, teacher: Teacher, num_classes: int, teacher_bytes: int):
        self.source, self.teacher, self.num_classes = source, teacher, num_classes
        self.teacher_bytes, self.per_epoch = teacher_bytes, source.per_epoch

    def open(self, seed: int, draws: Draws) -> Opened:
        """The same images as without."""
        opened = self.source.open(seed, draws)
        extra = self.teacher_bytes if opened.num_images is None else opened.num_images * soft_bytes(self.num_classes)
        return Opened(self._relabelled(opened.epochs), opened.num_images, opened.num_bytes + extra)

    def _relabelled(self, epochs: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        last, labels = None, None
        for images, _ in epochs:
            if images is not last:
                last, labels = images, self.teacher.labels(images)
            yield images, labels


def soft_bytes(num_classes: int) -> int:
    """What an image's soft label is stored in, as float32."""
    return 4 * num_classes


@torch.no_grad()
def generate(generator: nn.Module, labels: Tensor, rng: torch.Generator, runtime: Runtime, batch_size: int = 500) -> Tensor:
    """One image (N, C, H, W) in [-1, 1] for each label (N,), in eval mode, z from `rng`."""
    with eval_mode(generator), runtime.autocast():
        return torch.cat([generator.sample(part, rng) for part in labels.split(batch_size)])


def draw_fixed(generator: nn.Module, ipc: int, seed: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """`ipc` images of each class as they are stored, uint8 (N, C, H, W), sorted by class, and labels (N,)."""
    rng = torch.Generator(runtime.device).manual_seed(derive_seed(seed, "fixed", ipc))
    labels = torch.arange(generator.num_classes, device=runtime.device).repeat_interleave(ipc)
    images = generate(generator, labels, rng, runtime).float()
    return ((images + 1) * 127.5).round().clamp(0, 255).byte(), labels


@torch.no_grad()
def herding_order(classifier: Classifier, images: ImageSet, ipc: int, num_classes: int, batch_size: int = 1000) -> Tensor:
    """Indices (num_classes, ipc) of real images whose mean feature follows that of their class, the best first.

    Herding (Welling 2009, doi:10.1145/1553374.1553517) as iCaRL uses it (arXiv:1611.07725, Alg. 4): each next image brings the mean of
    those chosen closest to the class mean, here in the last features of `classifier`, scaled to unit length.
    """
    order = []
    with eval_mode(classifier):
        for label in range(num_classes):
            members = (images.labels == label).nonzero().flatten()
            parts = [classifier.logits_and_features(images.batch(part)[0])[1][-1].flatten(1) for part in members.split(batch_size)]
            features = torch.nn.functional.normalize(torch.cat(parts))  # (M, F)
            mean, total, free = (
                features.mean(0),
                torch.zeros_like(features[0]),
                torch.ones(len(members), dtype=torch.bool, device=members.device),
            )
            chosen = []
            for number in range(1, ipc + 1):
                distance = ((total + features) / number - mean).norm(dim=1)
                best = torch.where(free, distance, torch.inf).argmin()
                free[best], total = False, total + features[best]
                chosen.append(members[best])
            order.append(torch.stack(chosen))
    return torch.stack(order)
