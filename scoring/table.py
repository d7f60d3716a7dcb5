"""The rows of the table of stage 3: deployed generators, the source of each row, and example images."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from data import Data, to_float
from engine.files import file_hash
from engine.runtime import Runtime
from models import GanCheckpoint
from models.deploy import Filtered
from scoring.condensed import CondensedSets
from scoring.distilled import DistilledSet
from scoring.drawing import MatchedSets
from scoring.herding import HerdedSets
from scoring.results import ResultsFile
from scoring.samples import make_samples
from scoring.sources import (
    Fixed,
    Generated,
    Labelled,
    Real,
    Teacher,
    WithinBytes,
    draw_fixed,
    soft_bytes,
)
from scoring.storage import LOSSY, num_bytes, store
from utils import out_of_memory_hint

LABELS = ("hard", "soft")
# The sources of real images that take as many bytes as a generator, and the codec of each.
MATCHED = {
    "random-real-raw": "raw",
    "random-real-lossless": "webp",
    "random-real-jpeg": "jpeg",
    "random-real-jpeg-scan": "jpeg-scan",
}
# What may fill the bytes of a generator: real images by a codec, or condensed ones.
FILLERS = (*MATCHED.values(), "condensed")
# The fields of a row that say where its images come from; None if a field does not apply.
ORIGIN = (
    "generator_parameters generator_bytes checkpoint_sha256 storage filter drawn file file_sha256 set "
    "match_bytes quality chosen_by drawn_from teacher teacher_sha256 temperature factor"
).split()


@dataclass(frozen=True)
class Listed:
    """The source of a row of results, described before its images are made.

    fields: the settings of the row that say what the images are. per_epoch: number of images in an epoch.
    make: makes the source; every rank has to call it, since the first one may train or optimise. origin:
    fields of the row that are no settings.
    """

    fields: dict
    per_epoch: int
    make: Callable[[], object]
    origin: dict = field(default_factory=dict)

    @functools.cached_property
    def source(self) -> object:
        """The source, made at the first call."""
        return self.make()


@dataclass(frozen=True)
class Deployed:
    """A generator as it is deployed and scored: at its storage precision, possibly filtered.

    path: its file. fields: what its rows hold of it. num_bytes: size of all that the deployment takes.
    matched: makes its fixed sets; None = they are drawn at random, from `seed`, or, if that is None, from the
    seed of each classifier.
    """

    generator: nn.Module
    path: Path
    fields: dict
    num_bytes: int
    seed: int | None
    matched: MatchedSets | None
    runtime: Runtime

    @classmethod
    def of(
        cls,
        checkpoint: GanCheckpoint,
        storage: str | None,
        threshold: float,
        teacher: Teacher | None,
        seed: int | None,
        matched: MatchedSets | None,
        runtime: Runtime,
    ) -> "Deployed":
        """Deploy the generator of a checkpoint.

        storage: precision; None = that of the file. threshold: images whose class gets a lower probability
        from `teacher` are redrawn; 0 = no filter.
        """
        storage = storage or checkpoint.storage
        generator = store(checkpoint.generator(), storage)
        size = num_bytes(generator, storage)
        fields = {
            "generator_parameters": sum(p.numel() for p in generator.parameters()),
            "generator_bytes": size,
            "checkpoint_sha256": file_hash(checkpoint.path),
            "storage": storage,
            "drawn": None if seed is None else "exported",
        }
        generator = runtime.place(generator)
        if threshold:
            generator = Filtered(generator, teacher.classifier, threshold)
            size += teacher.num_bytes
            fields |= {"filter": threshold} | teacher.about
        return cls(generator, checkpoint.path, fields, size, seed, matched, runtime)

    def listed(self, ipc: int, fixed: bool) -> Listed:
        """Its images as a source; fixed: a set of `ipc` images a class instead of a stream."""
        fields = {"source": "generator"} | self.fields
        per_epoch = self.generator.num_classes * ipc
        origin = {"path": self.path.as_posix()}
        if fixed and self.matched:

            def make() -> Fixed:
                images, labels, latent_bytes = self.matched.images(self.generator, self.fields, ipc)
                return Fixed(to_float(images), labels, self.num_bytes + latent_bytes)

            fields |= {"drawn": self.matched.description}
            return Listed(fields, per_epoch, make, origin)
        source = Generated(self.generator, ipc, fixed, self.num_bytes, self.runtime, self.seed)
        return Listed(fields, per_epoch, lambda: source, origin)

    def exported(self, ipc: int) -> tuple[Tensor, Tensor]:
        """Its fixed set as it is exported: uint8 images (N, C, H, W) and labels (N,). Every rank has to call
        this."""
        if self.matched:
            return self.matched.images(self.generator, self.fields, ipc)[:2]
        return draw_fixed(self.generator, ipc, self.seed, self.runtime)


@dataclass(frozen=True)
class Table:
    """The sources of all rows of a table, on the device; listing them makes no images.

    sources: names of SOURCES, in their order. fillers: names of FILLERS that take as many bytes as a
    generator. quality: their JPEG quality. labels: names of LABELS. group: name of the sets in --file.
    trained: fingerprint of data.train.
    """

    sources: Sequence[str]
    fillers: Sequence[str]
    quality: int
    labels: Sequence[str]
    teacher: Teacher | None
    data: Data
    trained: str | None
    deployed: Sequence[Deployed]
    sets: Sequence[DistilledSet]
    group: str | None
    condensed: CondensedSets
    herded: HerdedSets

    def listed(self, ipc: int, fixed: bool) -> Iterator[Listed]:
        """Yield the source of each row at `ipc`, those with hard labels first. fixed: generators make a set
        instead of a stream."""
        k = self.data.info.num_classes
        for kind in sorted(set(self.labels)):
            soft = kind == "soft"
            for listed in self._unlabelled(ipc, fixed, soft_bytes(k) if soft else 0):
                drawn_from = None if listed.fields["source"] in ("generator", "file") else self.trained
                fields = dict.fromkeys(ORIGIN) | {"labels": kind, "drawn_from": drawn_from} | listed.fields
                make = listed.make
                if soft:
                    teacher_bytes = 0 if fields["filter"] else self.teacher.num_bytes
                    fields |= {"labels": kind, "temperature": self.teacher.temperature} | self.teacher.about
                    make = functools.partial(self._labelled, listed.make, teacher_bytes)
                yield replace(listed, fields=fields, make=make)

    def _labelled(self, make: Callable[[], object], teacher_bytes: int) -> Labelled:
        return Labelled(make(), self.teacher, self.data.info.num_classes, teacher_bytes)

    def _unlabelled(self, ipc: int, fixed: bool, item_bytes: int) -> Iterator[Listed]:
        info, train = self.data.info, self.data.train
        per_epoch = info.num_classes * ipc
        for name in self.sources:
            fields = {"source": name}
            if name == "generator":
                for deployed in self.deployed:
                    yield deployed.listed(ipc, fixed)
            elif name == "file":
                for one in self.sets:
                    if one.ipc == ipc:
                        make = functools.partial(Fixed, one.images, one.labels, one.num_bytes, one.num_images)
                        origin = one.origin | {"group": self.group}
                        yield Listed(fields | one.fields, len(one.labels), make, origin)
            elif name == "herding":
                make = functools.partial(self.herded.fixed, ipc)
                yield Listed(fields | self.herded.fields, per_epoch, make)
            elif name == "condensed":
                make = functools.partial(self.condensed.fixed, ipc)
                yield Listed(fields | self.condensed.fields, per_epoch, make)
            else:
                make = functools.partial(Real, train, ipc, info.num_classes, name == "random-real")
                yield Listed(fields, per_epoch, make)
        for size in dict.fromkeys(deployed.num_bytes for deployed in self.deployed):
            for name, codec in MATCHED.items():
                if codec in self.fillers:
                    quality = self.quality if codec in LOSSY else None
                    fields = {"source": name, "match_bytes": size, "quality": quality}
                    settings = (train, ipc, info, size, codec, self.quality, item_bytes)
                    yield Listed(fields, per_epoch, functools.partial(WithinBytes, *settings))
            if "condensed" in self.fillers:
                fields = {"source": f"condensed-{self.condensed.codec}", "match_bytes": size}
                make = functools.partial(self.condensed.within, ipc, size, item_bytes)
                yield Listed(fields | self.condensed.fields, per_epoch, make)


@out_of_memory_hint("--samples")
def keep_samples(
    results: ResultsFile, planned: Sequence[tuple[dict, Listed]], data: Data, per_class: int, seed: int
) -> None:
    """Add example images to the first row of each generator, file and kind of condensed images, and rewrite
    the results. Every rank has to call this."""
    done = set()
    for row, listed in planned:
        key = tuple(row[name] for name in ("source", "checkpoint_sha256", "storage", "file_sha256"))
        shown = row["source"] in ("generator", "file", "condensed")
        if shown and key not in done and "samples" not in row:
            source = getattr(listed.source, "unlabelled", listed.source)
            if isinstance(source, Generated):
                images, labels = draw_fixed(source.generator, per_class, seed, source.runtime)
                samples = make_samples(to_float(images), labels, data, per_class)
            else:
                samples = make_samples(source.images, source.labels, data, per_class)
            if samples:
                row["samples"] = samples
                results.write()
        done.add(key)
