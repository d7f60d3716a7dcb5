"""Fixed sets of generated images whose latents are not drawn at random: chosen by herding, or optimised by
matching."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from data import Data, DataInfo, ImageSet, to_uint8
from engine.files import make_folder, short_hash, write_tensors
from engine.progress import Progress
from engine.runtime import Runtime
from engine.seeds import derive_seed, seeded
from engine.steps import Step
from models import Classifier, read_classifier
from models.deploy import Latents
from models.matching import MATCH_RECIPES, Teachers, recipe_settings
from models.pool import Pool
from scoring.sources import generate, herding_order
from scoring.teachers import make_teachers

DRAWS = ("random", "herding", "matched")
DRAW_STEPS, TEACHER_EPOCHS = 200, 4
INDEX_BYTES = 2  # of the number of a candidate that herding chose


def matched_set(
    generator: nn.Module,
    train: ImageSet,
    info: DataInfo,
    ipc: int,
    steps: int,
    teachers: Sequence[Classifier],
    train_match: Callable[..., Iterator[Step]],
    seed: int,
    runtime: Runtime,
) -> tuple[Tensor, Tensor, int]:
    """Optimise `ipc` latents a class for `steps` steps by MATCH_RECIPES["energy"]; uint8 images, labels, and
    bytes of the latents.

    train_match: the loop of stage 2 (pool_match.py). The generator stays as it is, and so does the
    surrounding random state.
    """
    r = MATCH_RECIPES["energy"]
    with seeded(runtime.device, seed, "matched latents", ipc):
        latents = Latents.drawn(generator, ipc, seed, runtime.device, generator.num_classes)
        gan = latents.in_training()
        own = (r["pool_size"], latents, r["pool_steps"], r["pool_age"])
        pool = Pool(r["pool"], info, 0.01, "color_crop", seed, runtime, *own)
        size = min(r["batch_size"], len(train))
        settings = recipe_settings(min(r["match_batch"], ipc)) | {"lr_decay": "none"}
        loop = train_match(
            gan,
            pool,
            train,
            batch_size=size,
            steps=steps,
            teachers=Teachers(teachers, r["teacher_weight"]),
            seed=seed,
            runtime=runtime,
            **settings,
        )
        with Progress(steps, title=f"matching latents, ipc {ipc}") as bar:
            for _ in loop:
                bar.update(), bar.read()
    return *latents.images(runtime), latents.stored().nbytes


def herded_set(
    generator: nn.Module,
    classifier: Classifier,
    train: ImageSet,
    ipc: int,
    candidates: int,
    seed: int,
    runtime: Runtime,
) -> tuple[Tensor, Tensor, int]:
    """Choose `ipc` of `candidates` generated images of each class by herding towards the mean feature of the
    real ones.

    Returns uint8 images, labels, and the bytes of the numbers of those chosen. The features are those of
    `classifier`.
    """
    k = generator.num_classes
    rng = torch.Generator(runtime.device).manual_seed(derive_seed(seed, "candidates"))
    labels = torch.arange(k, device=runtime.device).repeat_interleave(candidates)
    drawn = ImageSet(to_uint8(generate(generator, labels, rng, runtime).float()), labels)
    chosen = herding_order(classifier, drawn, ipc, k, toward=train).flatten()
    return drawn.images[chosen], labels[chosen], INDEX_BYTES * len(chosen)


@dataclass(frozen=True)
class Drawer:
    """Draws the fixed sets of a generator by `kind`, "herding" or "matched"; each set is drawn once and kept
    in folder/drawn.

    classifiers: what herding takes its features from, and the teachers of matching; `by` describes them.
    number: of candidates a class, or of steps. trained: fingerprint of data.train.
    """

    kind: str
    number: int
    classifiers: Callable[[], list[Classifier]]
    by: str
    data: Data
    trained: str
    folder: Path
    train_match: Callable[..., Iterator[Step]]
    seed: int
    runtime: Runtime
    made: dict[Path, tuple[Tensor, Tensor, int]] = field(default_factory=dict)

    @property
    def about(self) -> str:
        """What a row of results holds of the draw."""
        return f"{self.kind}, {self.number} {'candidates a class' if self.kind == 'herding' else 'steps'}, {self.by}, seed {self.seed}"

    def __call__(self, generator: nn.Module, about: dict, ipc: int) -> tuple[Tensor, Tensor, int]:
        """Return uint8 images (N, C, H, W), labels (N,) and the bytes of what was chosen.

        about: what distinguishes the generator. The first call for a set waits for every rank; the first rank
        draws.
        """
        name = short_hash(json.dumps([self.about, about, ipc, self.trained]))
        path = self.folder / "drawn" / f"{self.kind}_ipc{ipc}_{name}.safetensors"
        if path not in self.made:
            classifiers = self.classifiers()
            self.runtime.on_main(
                lambda: None if path.exists() else self._draw(path, generator, ipc, classifiers)
            )
            kept = {name: tensor.to(self.runtime.device) for name, tensor in load_file(path).items()}
            self.made[path] = kept["images"], kept["labels"], int(kept["num_bytes"])
        return self.made[path]

    def _draw(self, path: Path, generator: nn.Module, ipc: int, classifiers: Sequence[Classifier]) -> None:
        data, seed, runtime = (
            self.data,
            self.seed,
            replace(self.runtime, rank=0, world_size=1),
        )  # the other ranks wait
        if self.kind == "herding":
            images, labels, size = herded_set(
                generator, classifiers[0], data.train, ipc, self.number, seed, runtime
            )
        else:
            settings = (ipc, self.number, classifiers, self.train_match, seed, runtime)
            images, labels, size = matched_set(generator, data.train, data.info, *settings)
        make_folder(path.parent)
        tensors = {"images": images.cpu(), "labels": labels.cpu(), "num_bytes": torch.tensor(size)}
        write_tensors(path, lambda temporary: temporary.write_bytes(save(tensors)))


def make_drawer(
    kind: str,
    number: int,
    herding: Callable[[], Path],
    by: str,
    data: Data,
    trained: str,
    folder: Path,
    train_match: Callable[..., Iterator[Step]],
    val_size: int,
    seed: int,
    runtime: Runtime,
) -> Drawer | None:
    """Make the Drawer of `kind`; None for "random". herding: gives the file of the classifier of herding,
    which `by` describes."""
    if kind == "random":
        return None
    shared = {
        "data": data,
        "trained": trained,
        "folder": folder,
        "train_match": train_match,
        "seed": seed,
        "runtime": runtime,
    }
    if kind == "herding":
        return Drawer(
            kind, number, lambda: [runtime.place(read_classifier(herding()).classifier)], by, **shared
        )
    r = MATCH_RECIPES["energy"]

    def teachers() -> list[Classifier]:
        return make_teachers(r["pool"], TEACHER_EPOCHS, data, folder, val_size, seed, runtime)

    return Drawer(kind, number, teachers, f"{' '.join(r['pool'])}, {TEACHER_EPOCHS} epochs", **shared)
