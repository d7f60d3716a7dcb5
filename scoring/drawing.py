"""Fixed sets of generated images whose latents are not drawn at random: chosen by herding, or optimised by matching.

Latents in the place of pixels: Zhao & Bilen 2022 (IT-GAN, arXiv:2204.07513), Cazenavette et al. 2023 (GLaD, arXiv:2305.01649).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from data import Data, DataInfo, ImageSet, to_uint8
from engine.files import make_folder, short_hash, write_tensors
from engine.optim import ADAM_BETAS
from engine.progress import Progress
from engine.runtime import Runtime
from engine.seeds import derive_seed, seeded
from engine.steps import Step
from models import Classifier, read_classifier
from models.gan import GAN
from models.matching import MATCH_RECIPES, recipe_settings
from models.pool import Pool
from scoring.sources import generate, herding_order
from scoring.teachers import make_teachers

DRAWS = ("random", "herding", "matched")
DRAW_STEPS, TEACHER_EPOCHS = 200, 4
INDEX_BYTES = 2  # of the number of a candidate that herding chose
LATENT_LR = 0.03


class Latents(nn.Module):
    """A frozen generator whose latents, `ipc` of each class, are the parameters; it samples from these alone.

    generator: has a method sample(y), z_dim, and forward(z, y); it stays in eval mode. values: (num_classes, ipc, z_dim).
    """

    def __init__(self, generator: nn.Module, ipc: int, seed: int, runtime: Runtime):
        super().__init__()
        self.held = [generator.eval()]  # in a list, so that its weights are not among the parameters
        self.num_classes, self.ipc, self.z_dim = generator.num_classes, ipc, generator.z_dim
        values = torch.randn(self.num_classes, ipc, self.z_dim, generator=torch.Generator().manual_seed(derive_seed(seed, "latents", ipc)))
        self.values = nn.Parameter(values.to(runtime.device))

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,): those of a class at random, each again only after all others."""
        order = torch.rand(self.num_classes, self.ipc, device=y.device, generator=rng).argsort(1)
        number = (F.one_hot(y, self.num_classes).cumsum(0) - 1).gather(1, y[:, None]).squeeze(1) % self.ipc  # of an image in its class
        return self.held[0](self.values[y, order[y, number]], y)

    def images(self, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """The images of all latents in half precision, as uint8 (N, C, H, W) sorted by class, and their labels (N,)."""
        labels = torch.arange(self.num_classes, device=runtime.device).repeat_interleave(self.ipc)
        with torch.no_grad(), runtime.autocast():
            stored = self.values.half().float().flatten(0, 1)
            parts = [self.held[0](z, y).float() for z, y in zip(stored.split(500), labels.split(500), strict=True)]
        return to_uint8(torch.cat(parts)), labels

    @property
    def num_bytes(self) -> int:
        """Size of the latents in half precision, the entries that the class overwrites left out."""
        return 2 * self.num_classes * self.ipc * (self.z_dim - self.num_classes)


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
    """Optimise `ipc` latents a class for `steps` steps by MATCH_RECIPES["energy"]; uint8 images, labels, and bytes of the latents.

    train_match: the loop of stage 2 (pool_match.py). The generator stays as it is, and so does the surrounding random state.
    """
    r = MATCH_RECIPES["energy"]
    with seeded(runtime.device, seed, "matched latents", ipc):
        latents = Latents(generator, ipc, seed, runtime)
        gan = GAN(latents, None, LATENT_LR, betas=(0.9, ADAM_BETAS[1]))
        pool = Pool(r["pool"], info, 0.01, "color_crop", seed, runtime, r["pool_size"], latents)
        size = min(r["batch_size"], len(train))
        settings = recipe_settings(min(r["match_batch"], ipc)) | {"lr_decay": "none"}
        loop = train_match(gan, pool, train, batch_size=size, steps=steps, teachers=teachers, seed=seed, runtime=runtime, **settings)
        with Progress(steps, title=f"matching latents, ipc {ipc}") as bar:
            for _ in loop:
                bar.update(), bar.read()
    return *latents.images(runtime), latents.num_bytes


def herded_set(
    generator: nn.Module, classifier: Classifier, train: ImageSet, ipc: int, candidates: int, seed: int, runtime: Runtime
) -> tuple[Tensor, Tensor, int]:
    """Choose `ipc` of `candidates` generated images of each class by herding towards the mean feature of the real ones.

    Returns uint8 images, labels, and the bytes of the numbers of those chosen. The features are those of `classifier`.
    """
    k = generator.num_classes
    rng = torch.Generator(runtime.device).manual_seed(derive_seed(seed, "candidates"))
    labels = torch.arange(k, device=runtime.device).repeat_interleave(candidates)
    drawn = ImageSet(to_uint8(generate(generator, labels, rng, runtime).float()), labels)
    chosen = herding_order(classifier, drawn, ipc, k, toward=train).flatten()
    return drawn.images[chosen], labels[chosen], INDEX_BYTES * len(chosen)


@dataclass(frozen=True)
class Drawer:
    """Draws the fixed sets of a generator by `kind`, "herding" or "matched"; each set is drawn once and kept in folder/drawn.

    classifiers: what herding takes its features from, and the teachers of matching; `by` describes them. number: of candidates a class, or
    of steps. trained: fingerprint of data.train.
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

        about: what distinguishes the generator. The first call for a set waits for every rank; the first rank draws.
        """
        name = short_hash(json.dumps([self.about, about, ipc, self.trained]))
        path = self.folder / "drawn" / f"{self.kind}_ipc{ipc}_{name}.safetensors"
        if path not in self.made:
            classifiers = self.classifiers()
            self.runtime.on_main(lambda: None if path.exists() else self._draw(path, generator, ipc, classifiers))
            kept = {name: tensor.to(self.runtime.device) for name, tensor in load_file(path).items()}
            self.made[path] = kept["images"], kept["labels"], int(kept["num_bytes"])
        return self.made[path]

    def _draw(self, path: Path, generator: nn.Module, ipc: int, classifiers: Sequence[Classifier]) -> None:
        data, seed, runtime = self.data, self.seed, replace(self.runtime, rank=0, world_size=1)  # the other ranks wait
        if self.kind == "herding":
            images, labels, size = herded_set(generator, classifiers[0], data.train, ipc, self.number, seed, runtime)
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
    """Make the Drawer of `kind`; None for "random". herding: gives the file of the classifier of herding, which `by` describes."""
    if kind == "random":
        return None
    shared = {"data": data, "trained": trained, "folder": folder, "train_match": train_match, "seed": seed, "runtime": runtime}
    if kind == "herding":
        return Drawer(kind, number, lambda: [runtime.place(read_classifier(herding()).classifier)], by, **shared)
    r = MATCH_RECIPES["energy"]

    def teachers() -> list[Classifier]:
        return make_teachers(r["pool"], TEACHER_EPOCHS, data, folder, val_size, seed, runtime)

    return Drawer(kind, number, teachers, f"{' '.join(r['pool'])}, {TEACHER_EPOCHS} epochs", **shared)
