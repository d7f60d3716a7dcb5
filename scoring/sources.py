"""Sources of training images for classifiers: generated, real, selected or stored images, with their own
labels or a teacher's.

A source has `per_epoch`, the number of images in an epoch, and open(seed, streams) -> Opened for the
classifier of `seed`. Images are float32 (N, C, H, W) in [-1, 1]; labels are (N,), or soft (N, K).
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data import DataInfo, ImageSet, balanced_epochs, to_float, to_uint8
from engine.files import file_hash
from engine.runtime import Runtime
from engine.seeds import RandomStreams, derive_seed
from engine.tensors import eval_mode
from models import Classifier, SavedClassifier
from scoring.storage import LENGTH_BYTES, decode_images, encode_images, make_codec, num_bytes
from utils import UsageError


class Opened(NamedTuple):
    """Endless epochs of images and labels, and the size of what they are drawn from.

    num_images: number of different images that are stored; None if they are generated. num_bytes: size of the
    stored images or of the generator.
    """

    epochs: Iterator[tuple[Tensor, Tensor]]
    num_images: int | None
    num_bytes: int


class Fixed:
    """A set of images that is the same at each epoch.

    num_bytes: size of the stored set (default: that of uint8 images whose order implies their labels).
    num_images: number of stored images, if several of these are decoded from each.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, num_bytes: int | None = None, num_images: int | None = None
    ):
        self.images, self.labels, self.per_epoch = images, labels, len(labels)
        self.num_bytes = images.numel() if num_bytes is None else num_bytes
        self.num_images = len(labels) if num_images is None else num_images

    def open(self, seed: int, streams: RandomStreams) -> Opened:
        """Return the same set for every seed."""
        return Opened(itertools.repeat((self.images, self.labels)), self.num_images, self.num_bytes)


@dataclass(frozen=True)
class Generated:
    """Generated images, `ipc` of each class, drawn anew at each epoch.

    fixed: draw them once, rounded to uint8. num_bytes: size of all that the deployment of the generator
    takes. seed: seed of the fixed set; None = each classifier draws its own.
    """

    generator: nn.Module
    ipc: int
    fixed: bool
    num_bytes: int
    runtime: Runtime
    seed: int | None = None

    @property
    def per_epoch(self) -> int:
        """Number of images in an epoch."""
        return self.generator.num_classes * self.ipc

    def open(self, seed: int, streams: RandomStreams) -> Opened:
        """Draw the latents of a stream from `streams`, those of a fixed set from the source's own seed or
        else from `seed`."""
        if self.fixed:
            own_seed = seed if self.seed is None else self.seed
            images, labels = draw_fixed(self.generator, self.ipc, own_seed, self.runtime)
            return Opened(itertools.repeat((to_float(images), labels)), None, self.num_bytes)
        labels = torch.arange(self.generator.num_classes, device=self.runtime.device)
        labels = labels.repeat_interleave(self.ipc)
        epochs = (
            (generate(self.generator, labels, streams.device, self.runtime), labels)
            for _ in itertools.count()
        )
        return Opened(epochs, None, self.num_bytes)


@dataclass(frozen=True)
class Real:
    """Real images, `ipc` of each class at each epoch, in shuffled passes over the set.

    fixed: choose `ipc` random images of each class once, and use these at every epoch.
    """

    images: ImageSet
    ipc: int
    num_classes: int
    fixed: bool = False

    @property
    def per_epoch(self) -> int:
        """Number of images in an epoch."""
        return self.num_classes * self.ipc

    def open(self, seed: int, streams: RandomStreams) -> Opened:
        """Draw the order and the choice of the images from `seed`."""
        name = "random-real" if self.fixed else "real"
        order = balanced_epochs(self.images.labels, self.ipc, self.num_classes, seed, name)
        if self.fixed:
            images, labels = self.images.batch(next(order))
            return Opened(itertools.repeat((images, labels)), len(labels), images.numel())
        epochs = (self.images.batch(index) for index in order)
        return Opened(epochs, len(self.images), self.images.images.numel())


@dataclass(frozen=True)
class WithinBytes:
    """As many random real images as fit into `max_bytes`, stored with the codec of this name and decoded from
    what is stored.

    Each class gets an equal part of the bytes. An epoch has `ipc` images of each class, in shuffled passes
    over the stored images, so that steps and images seen are those of a stream. item_bytes: size of what is
    stored with each image beside its code, such as a soft label.
    """

    images: ImageSet
    ipc: int
    info: DataInfo
    max_bytes: int
    codec: str
    quality: int
    item_bytes: int = 0

    @property
    def per_epoch(self) -> int:
        """Number of images in an epoch."""
        return self.info.num_classes * self.ipc

    def open(self, seed: int, streams: RandomStreams) -> Opened:
        """Draw the choice and the order of the images from `seed`. Raises UsageError if not even one image of
        a class fits."""
        stored, num_bytes = self.choose(seed)
        order = balanced_epochs(stored.labels, self.ipc, self.info.num_classes, seed, "real")
        return Opened((stored.batch(index) for index in order), len(stored), num_bytes)

    def choose(self, seed: int) -> tuple[ImageSet, int]:
        """Return the stored images, as they are decoded, and their size in bytes without item_bytes."""
        rng = torch.Generator().manual_seed(derive_seed(seed, "within bytes"))
        codec = make_codec(self.codec, self.quality, self.info)
        shared = codec.shared if codec else 0
        share = (self.max_bytes - shared) // self.info.num_classes
        labels = self.images.labels.cpu()
        images, classes, num_bytes = [], [], shared
        for label, name in enumerate(self.info.class_names):
            room = share
            members = (labels == label).nonzero().flatten()
            for index in members[torch.randperm(len(members), generator=rng)]:
                image = self.images.images[index : index + 1]
                size = image.numel()
                if codec:
                    code = encode_images(codec, image)
                    size = len(code[0]) + LENGTH_BYTES
                    image = decode_images(codec, code, self.info).to(image.device)
                room -= size + self.item_bytes
                if room < 0:
                    break
                images.append(image)
                classes.append(label)
                num_bytes += size
            if label not in classes[-1:]:
                raise UsageError(
                    f"--match-bytes: {share} bytes for class {name} hold no image, expected "
                    f"{size + self.item_bytes} or more"
                )
        labels = torch.tensor(classes, device=self.images.labels.device)
        return ImageSet(torch.cat(images), labels), num_bytes


@dataclass(frozen=True)
class Teacher:
    """A trained classifier of the same classes, which labels images with softmax(logits / temperature).

    about: the fields that a row of results holds of it.
    """

    classifier: Classifier
    num_bytes: int
    temperature: float
    about: dict

    @classmethod
    def of(cls, saved: SavedClassifier, path: str, temperature: float, runtime: Runtime) -> "Teacher":
        """Make a teacher of the classifier `saved`, which was read from `path`."""
        about = {"teacher": saved.network, "teacher_sha256": file_hash(path)}
        return cls(runtime.place(saved.classifier), num_bytes(saved.classifier), temperature, about)

    @torch.no_grad()
    def labels(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Label images (N, C, H, W) in [-1, 1] with float32 probabilities (N, K), in eval mode."""
        with eval_mode(self.classifier):
            return torch.cat(
                [(self.classifier(part) / self.temperature).softmax(1) for part in images.split(batch_size)]
            )


class Labelled:
    """A source whose labels are replaced by a teacher's.

    With stored images, the soft labels are stored too, and their size is added. A generator needs the teacher
    wherever it is deployed, so teacher_bytes is added: the size of the teacher, or 0 if it is counted
    already.
    """

    def __init__(self, source, teacher: Teacher, num_classes: int, teacher_bytes: int):
        self.unlabelled = source
        self.teacher = teacher
        self.num_classes = num_classes
        self.teacher_bytes = teacher_bytes
        self.per_epoch = source.per_epoch

    def open(self, seed: int, streams: RandomStreams) -> Opened:
        """Return the images of the source, with the teacher's labels."""
        epochs, num_images, num_bytes = self.unlabelled.open(seed, streams)
        stored = num_images is not None
        extra = num_images * soft_bytes(self.num_classes) if stored else self.teacher_bytes
        return Opened(self._relabelled(epochs), num_images, num_bytes + extra)

    def _relabelled(self, epochs: Iterator[tuple[Tensor, Tensor]]) -> Iterator[tuple[Tensor, Tensor]]:
        last = None
        for images, _ in epochs:
            if images is not last:
                last = images
                labels = self.teacher.labels(images)
            yield images, labels


def soft_bytes(num_classes: int) -> int:
    """Size in bytes of the soft label of one image, as float32."""
    return 4 * num_classes


@torch.no_grad()
def generate(
    generator: nn.Module, labels: Tensor, rng: torch.Generator, runtime: Runtime, batch_size: int = 500
) -> Tensor:
    """Generate one image for each label (N,), in eval mode, z from `rng`: (N, C, H, W) in [-1, 1]."""
    with eval_mode(generator), runtime.autocast():
        return torch.cat([generator.sample(part, rng) for part in labels.split(batch_size)])


def draw_fixed(generator: nn.Module, ipc: int, seed: int, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Draw a fixed set of `ipc` images of each class: uint8 images (N, C, H, W), sorted by class, and labels
    (N,)."""
    rng = torch.Generator(runtime.device).manual_seed(derive_seed(seed, "fixed", ipc))
    labels = torch.arange(generator.num_classes, device=runtime.device).repeat_interleave(ipc)
    return to_uint8(generate(generator, labels, rng, runtime).float()), labels
