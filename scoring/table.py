"""The rows of the table of stage 3: deployed generators, the source of each row, and example images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from data import Data, to_float
from engine.files import file_hash
from engine.runtime import Runtime
from models import GanCheckpoint, read_classifier
from models.deploy import Filtered, Several
from scoring.condensed import CondensedSets
from scoring.distilled import DistilledSet
from scoring.drawing import Drawer
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
    herding_order,
    soft_bytes,
)
from scoring.storage import LOSSY, num_bytes, store
from utils import Effect, out_of_memory_hint

SOURCES = ("generator", "real", "random-real", "herding", "condensed", "file")
LABELS = ("hard", "soft")
# The sources of real images that take as many bytes as a generator, and the codec of each.
MATCHED = {
    "random-real-raw": "raw",
    "random-real-lossless": "webp",
    "random-real-jpeg": "jpeg",
    "random-real-jpeg-scan": "jpeg-scan",
}
FILLERS = (
    *MATCHED.values(),
    "condensed",
)  # what may fill the bytes of a generator: real images by a codec, or condensed ones
# Flags of validate.py that depend on others; those that are refused are in its check_flags.
EFFECTS = (
    Effect(
        ("pretrain_weight",),
        lambda args: "generator" in args.source,
        "but to name the image set: --source has no generator",
    ),
    Effect(("mixture",), lambda args: len(args.pretrain_weight or []) != 1, "with one --pretrain-weight"),
    Effect(
        ("quality",),
        lambda args: args.match_bytes is not None or args.codec in LOSSY,
        "without --match-bytes or a lossy --codec",
    ),
    Effect(("draw_candidates",), lambda args: args.draw == "herding", "without --draw herding"),
    Effect(("draw_steps",), lambda args: args.draw == "matched", "without --draw matched"),
    Effect(
        ("herding_epochs",),
        lambda args: "herding" in (*args.source, args.draw),
        "without --source herding or --draw herding",
    ),
    Effect(("dsa_composition",), lambda args: args.dsa_strategy != "none", "with --dsa-strategy none"),
)
# The fields of a row that say where its images come from; None if a field does not apply.
ORIGIN = (
    *(
        "generator_parameters",
        "generator_bytes",
        "checkpoint_sha256",
        "storage",
        "filter",
        "drawn",
        "file",
        "file_sha256",
        "set",
    ),
    *(
        "match_bytes",
        "quality",
        "chosen_by",
        "drawn_from",
        "teacher",
        "teacher_sha256",
        "temperature",
        "factor",
    ),
)


def fillers(given: Sequence[str] | None, sources: Sequence[str]) -> list[str]:
    """The kinds of FILLERS that --match-bytes asks for beside `sources`: none without it, and with no kind real images by each codec
    and, beside condensed images, these."""
    if given is None:
        return []
    return list(dict.fromkeys(given)) or [name for name in FILLERS if name != "condensed" or name in sources]


@dataclass(frozen=True)
class Deployed:
    """A generator as it is deployed and scored: at its storage precision, possibly several as one, possibly
    filtered.

    paths: its files. about: the fields that its rows hold of it. num_bytes: size of all that the deployment
    takes. seed: seed of its fixed sets; None if each classifier draws its own.
    """

    generator: nn.Module
    paths: tuple[Path, ...]
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
        """Deploy the generator of one checkpoint, or the generators of several as one.

        storage: precision; None = that of each file. threshold: images whose class gets a lower probability
        from `teacher` are redrawn; 0 = no filter.
        """
        storages = [storage or checkpoint.storage for checkpoint in checkpoints]
        stored = [
            store(checkpoint.generator(), kind)
            for checkpoint, kind in zip(checkpoints, storages, strict=True)
        ]
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
        return cls(generator, tuple(checkpoint.path for checkpoint in checkpoints), about, size, seed)


@dataclass
class Table:
    """The sources of a table, on the device, and the fields that a row holds of each.

    names: the sources, in their order. labels: "hard", "soft" or both; None = the labels that the images come
    with. trained: fingerprint of data.train. drawer: draws the fixed sets of generators; None = at random.
    condensed: the sets of --source condensed.
    """

    names: list[str]
    data: Data
    runtime: Runtime
    deployed: list[Deployed]
    sets: list[DistilledSet]
    teacher: Teacher | None
    labels: list[str] | None
    trained: str | None
    drawer: Drawer | None = None
    condensed: CondensedSets | None = None
    herded: tuple[Tensor, str] | None = (
        None  # indices (K, ipc), and a description of the network that chose them
    )

    def herd(self, path: Path, ipc: int, by: str) -> None:
        """Choose `ipc` images of each class by herding, with the features of the classifier in `path`,
        described by `by`."""
        classifier = self.runtime.place(read_classifier(path).classifier)
        self.herded = (
            herding_order(classifier, self.data.train, ipc, self.data.info.num_classes),
            f"{by}, {path.stem}",
        )

    def sources(
        self, ipc: int, fixed: bool, filling: Sequence[str], quality: int
    ) -> Iterator[tuple[dict, object]]:
        """Yield (fields of the row, source) for each row at `ipc`, rows with hard labels first.

        filling: kinds of FILLERS that take as many bytes as a generator. quality: their JPEG quality.
        """
        kinds, k = list(dict.fromkeys(self.labels or ["hard"])), self.data.info.num_classes
        for kind in sorted(kinds):
            for about, source in self._unlabelled(
                ipc, fixed, filling, quality, soft_bytes(k) if kind == "soft" else 0
            ):
                drawn_from = None if about["source"] in ("generator", "file") else self.trained
                about = dict.fromkeys(ORIGIN) | {"labels": kind, "drawn_from": drawn_from} | about
                if kind == "soft":
                    about |= {"labels": kind, "temperature": self.teacher.temperature} | self.teacher.about
                    source = Labelled(
                        source, self.teacher, k, 0 if about["filter"] else self.teacher.num_bytes
                    )
                yield about, source

    def _unlabelled(
        self, ipc: int, fixed: bool, filling: Sequence[str], quality: int, item_bytes: int
    ) -> Iterator[tuple[dict, object]]:
        data, k = self.data, self.data.info.num_classes
        for name in self.names:
            if name == "generator":
                for one in self.deployed:
                    if fixed and self.drawer:
                        images, labels, size = self.drawer(one.generator, one.about, ipc)
                        about = {"source": name} | one.about | {"drawn": self.drawer.about}
                        yield about, Fixed(to_float(images), labels, one.num_bytes + size)
                        continue
                    yield (
                        {"source": name} | one.about,
                        Generated(one.generator, ipc, fixed, one.num_bytes, self.runtime, one.seed),
                    )
            elif name == "file":
                for found in self.sets:
                    if found.ipc == ipc:
                        about = {"file": found.path.name, "file_sha256": found.sha256(), "set": found.number}
                        about["factor"] = found.factor if found.factor > 1 else None
                        about |= {"labels": "soft" if found.soft else "hard"}
                        yield (
                            {"source": name} | about,
                            Fixed(found.images, found.labels, found.num_bytes, found.num_images),
                        )
            elif name == "herding":
                images, labels = data.train.batch(self.herded[0][:, :ipc].flatten())
                yield {"source": name, "chosen_by": self.herded[1]}, Fixed(images, labels)
            elif name == "condensed":
                yield {"source": name} | self.condensed.about, self.condensed.fixed(ipc)
            else:
                yield {"source": name}, Real(data.train, ipc, k, fixed=name == "random-real")
        for size in dict.fromkeys(one.num_bytes for one in self.deployed):
            for name, codec in MATCHED.items():
                if codec in filling:
                    about = {
                        "source": name,
                        "match_bytes": size,
                        "quality": quality if codec in LOSSY else None,
                    }
                    yield about, WithinBytes(data.train, ipc, data.info, size, codec, quality, item_bytes)
            if "condensed" in filling:
                about = {"source": f"condensed-{self.condensed.codec}", "match_bytes": size}
                yield about | self.condensed.about, self.condensed.within(ipc, size, item_bytes)

    def origin(self, row: dict, group: str | None) -> dict:
        """The file that a row was trained on, the name of the group of --file, and the images of each class
        if they are unequal."""
        for one in self.deployed:
            if (
                row["source"] == "generator"
                and one.about["checkpoint_sha256"] == row["checkpoint_sha256"]
                and len(one.paths) == 1
            ):
                return {"path": one.paths[0].as_posix()}
        for found in self.sets:
            if row["source"] == "file" and (found.sha256(), found.number) == (row["file_sha256"], row["set"]):
                counts = list(found.counts) if len(set(found.counts)) > 1 else None
                return {"path": found.path.as_posix(), "group": group, "images_per_class": counts}
        return {}

    @out_of_memory_hint("--samples")
    def shown(self, row: dict, per_class: int, seed: int) -> tuple[Tensor, Tensor] | None:
        """Return float images (N, C, H, W) and labels to show for the row of a generator, a file or condensed
        images, else None."""
        for one in self.deployed:
            if row["source"] == "generator" and one.about["checkpoint_sha256"] == row["checkpoint_sha256"]:
                if self.drawer and row["budget"] == "fixed":
                    images, labels, _ = self.drawer(one.generator, one.about, row["ipc"])
                    return to_float(images), labels
                images, labels = draw_fixed(one.generator, per_class, seed, self.runtime)
                return to_float(images), labels
        if row["source"] == "condensed":
            source = self.condensed.fixed(row["ipc"])
            return source.images, source.labels
        for found in self.sets:
            if row["source"] == "file" and found.sha256() == row["file_sha256"]:
                return found.images, found.labels
        return None


def keep_samples(results: ResultsFile, rows: list[dict], table: Table, per_class: int, seed: int) -> None:
    """Add example images to the first row of each generator, file and kind of condensed images, and rewrite
    the results."""
    done = set()
    for row in rows:
        key = str([row[name] for name in ("source", "checkpoint_sha256", "storage", "file_sha256")])
        shown = None if key in done or "samples" in row else table.shown(row, per_class, seed)
        if shown and (samples := make_samples(*shown, table.data, per_class)):
            row["samples"] = samples
            results.write()
        done.add(key)
