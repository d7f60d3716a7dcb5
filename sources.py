"""What classifiers are trained on: generated images, real ones, chosen ones, stored ones, files; with labels of their own or a teacher's.

A source has `per_epoch`, the images of an epoch, and open(seed, draws) -> Opened for the classifier of `seed`. Images are float32
(N, C, H, W) in [-1, 1], labels (N,) or soft (N, K).
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from data import Data, DataInfo, ImageSet, balanced_epochs, to_float
from distilled import DistilledSet, write_distilled
from models import Classifier, GanCheckpoint, SavedClassifier, read_classifier
from models.deploy import Filtered, Several
from results import ResultsFile
from run_folder import make_folder
from runtime import Draws, Runtime
from samples import make_samples
from storage import LENGTH_BYTES, decode_images, encode_images, export_generator, make_codec, num_bytes, store
from utils import UsageError, derive_seed, eval_mode, file_hash

LABELS = ("hard", "soft")
# The codecs that real images are stored with to be as many bytes as a generator.
MATCHED = {"random-real-raw": "raw", "random-real-lossless": "webp", "random-real-jpeg": "jpeg"}
# What a row says of where its images come from; None where that is not so.
ORIGIN = (
    *("generator_parameters", "generator_bytes", "checkpoint_sha256", "storage", "filter", "drawn", "file", "file_sha256", "set"),
    *("match_bytes", "quality", "chosen_by", "drawn_from", "teacher", "teacher_sha256", "temperature"),
)


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


@dataclass(frozen=True)
class Deployed:
    """A generator to score, at the precision it is stored in, several as one, filtered; and what its rows say of it.

    num_bytes: of all that it takes to deploy it. seed: of its fixed sets, None where each classifier has its own.
    """

    generator: nn.Module
    about: dict
    num_bytes: int
    seed: int | None

    @classmethod
    def of(
        cls,
        checkpoints: Sequence[GanCheckpoint],
        storage: str | None,
        threshold: float,
        teacher: Teacher | None,
        seed: int | None,
        runtime: Runtime,
    ) -> "Deployed":
        """The generator of one checkpoint, or of several as one. storage: None = each file's. threshold: of the filter, 0 = none."""
        storages = [storage or checkpoint.storage for checkpoint in checkpoints]
        stored = [store(checkpoint.generator(), kind) for checkpoint, kind in zip(checkpoints, storages, strict=True)]
        size = sum(num_bytes(generator, kind) for generator, kind in zip(stored, storages, strict=True))
        generator = Several(stored) if len(stored) > 1 else stored[0]
        hashes = [file_hash(checkpoint.path) for checkpoint in checkpoints]
        about = {
            "generator_parameters": sum(p.numel() for p in generator.parameters()),
            "generator_bytes": size,
            "checkpoint_sha256": hashes[0] if len(hashes) == 1 else hashes,
            "storage": storages[0] if len(set(storages)) == 1 else storages,
            "drawn": None if seed is None else "exported",
        }
        generator = runtime.place(generator)
        if threshold:
            generator, size = Filtered(generator, teacher.classifier, threshold), size + teacher.num_bytes
            about |= {"filter": threshold} | teacher.about
        return cls(generator, about, size, seed)


@dataclass
class Table:
    """The rows of a table: its sources, on the device, with what a row says of each.

    names: of the sources, in their order. labels: "hard", "soft", both; None = as the images come. trained: the fingerprint of data.train.
    """

    names: list[str]
    data: Data
    runtime: Runtime
    deployed: list[Deployed]
    sets: list[DistilledSet]
    teacher: Teacher | None
    labels: list[str] | None
    trained: str | None
    herded: tuple[Tensor, str] | None = None  # indices (K, ipc), and by what they were chosen

    def herd(self, path: Path, ipc: int, by: str) -> None:
        """Choose `ipc` images of each class by herding, in the features of the classifier in `path`."""
        classifier = self.runtime.place(read_classifier(path).classifier)
        self.herded = herding_order(classifier, self.data.train, ipc, self.data.info.num_classes), f"{by}, {path.stem}"

    def sources(self, ipc: int, fixed: bool, match_quality: int | None) -> Iterator[tuple[dict, object]]:
        """(what its row says, source) of each row at `ipc`, those of hard labels first.

        match_quality: of the JPEG among the sources that are as many bytes as a generator, None for none of these.
        """
        kinds, k = list(dict.fromkeys(self.labels or ["hard"])), self.data.info.num_classes
        for kind in sorted(kinds):
            for about, source in self._unlabelled(ipc, fixed, match_quality, soft_bytes(k) if kind == "soft" else 0):
                drawn_from = None if about["source"] in ("generator", "file") else self.trained
                about = dict.fromkeys(ORIGIN) | {"labels": kind, "drawn_from": drawn_from} | about
                if kind == "soft":
                    about |= {"labels": kind, "temperature": self.teacher.temperature} | self.teacher.about
                    source = Labelled(source, self.teacher, k, 0 if about["filter"] else self.teacher.num_bytes)
                yield about, source

    def _unlabelled(self, ipc: int, fixed: bool, match_quality: int | None, item_bytes: int) -> Iterator[tuple[dict, object]]:
        data, k = self.data, self.data.info.num_classes
        for name in self.names:
            if name == "generator":
                for one in self.deployed:
                    yield {"source": name} | one.about, Generated(one.generator, ipc, fixed, one.num_bytes, self.runtime, one.seed)
            elif name == "file":
                for found in self.sets:
                    if found.ipc == ipc:
                        about = {"file": found.path.name, "file_sha256": found.sha256(), "set": found.number}
                        about |= {"labels": "soft" if found.soft else "hard"}
                        yield {"source": name} | about, Fixed(found.images, found.labels, found.num_bytes)
            elif name == "herding":
                images, labels = data.train.batch(self.herded[0][:, :ipc].flatten())
                yield {"source": name, "chosen_by": self.herded[1]}, Fixed(images, labels)
            else:
                yield {"source": name}, Real(data.train, ipc, k, fixed=name == "random-real")
        if match_quality:
            for size in dict.fromkeys(one.num_bytes for one in self.deployed):
                for name, codec in MATCHED.items():
                    about = {"source": name, "match_bytes": size, "quality": match_quality if codec == "jpeg" else None}
                    yield about, WithinBytes(data.train, ipc, data.info, size, codec, match_quality, item_bytes)

    def shown(self, row: dict, per_class: int, seed: int) -> tuple[Tensor, Tensor] | None:
        """Some images float (N, C, H, W) and labels of a generator's or a file's row; None of another."""
        for one in self.deployed:
            if row["source"] == "generator" and one.about["checkpoint_sha256"] == row["checkpoint_sha256"]:
                images, labels = draw_fixed(one.generator, per_class, seed, self.runtime)
                return to_float(images), labels
        for found in self.sets:
            if row["source"] == "file" and found.sha256() == row["file_sha256"]:
                return found.images, found.labels
        return None


def export(folder: Path, checkpoint: GanCheckpoint, storage: str, table: Table, ipcs: list[int]) -> None:
    """Write the table's one generator as it is shipped, and the sets drawn from it, with the teacher's labels where the table has them."""
    (deployed,) = table.deployed
    make_folder(folder)
    export_generator(folder / "generator.safetensors", checkpoint, storage)
    for ipc in ipcs:
        images, labels = draw_fixed(deployed.generator, ipc, deployed.seed, table.runtime)
        soft = table.teacher.labels(to_float(images)) if "soft" in (table.labels or []) else None
        write_distilled(folder / f"ipc{ipc}", images, labels, soft, table.data.info)


def keep_samples(results: ResultsFile, rows: list[dict], table: Table, per_class: int, seed: int) -> None:
    """Add to the first row of each generator and file some of its images, beside real ones."""
    done = set()
    for row in rows:
        key = str([row[name] for name in ("source", "checkpoint_sha256", "storage", "file_sha256")])
        shown = None if key in done or "samples" in row else table.shown(row, per_class, seed)
        if shown and (samples := make_samples(*shown, table.data, per_class)):
            row["samples"] = samples
            results.write()
        done.add(key)
