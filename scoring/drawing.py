"""Fixed sets of generated images whose latents are optimised by the loop of stage 2."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from data import Data, DataInfo, ImageSet
from engine.files import write_tensors
from engine.progress import Progress
from engine.runtime import Runtime
from engine.seeds import seeded
from models import Classifier
from models.deploy import Latents
from models.matching import MATCH_RECIPES, Teachers, recipe_settings
from models.pool import Pool
from pool_match import train_match
from scoring.kept import kept_path, make_once
from scoring.teachers import make_teachers

DRAWS = ("random", "matched")
RECIPE = MATCH_RECIPES["energy"]
TEACHER_EPOCHS = 4


def matched_set(
    generator: nn.Module,
    train: ImageSet,
    info: DataInfo,
    ipc: int,
    steps: int,
    teachers: Sequence[Classifier],
    seed: int,
    runtime: Runtime,
) -> tuple[Tensor, Tensor, int]:
    """Optimise `ipc` latents a class for `steps` steps by RECIPE; uint8 images, labels, and bytes of the
    latents.

    The generator stays as it is, and so does the surrounding random state.
    """
    with seeded(runtime.device, seed, "matched latents", ipc):
        latents = Latents(generator, ipc, seed, runtime.device, generator.num_classes)
        own = (RECIPE["pool_size"], latents, RECIPE["pool_steps"], RECIPE["pool_age"])
        pool = Pool(RECIPE["pool"], info, 0.01, "color_crop", seed, runtime, *own)
        settings = recipe_settings(min(RECIPE["match_batch"], ipc)) | {"lr_decay": "none"}
        loop = train_match(
            latents.in_training(),
            pool,
            train,
            batch_size=min(RECIPE["batch_size"], len(train)),
            steps=steps,
            teachers=Teachers(teachers, RECIPE["teacher_weight"]),
            seed=seed,
            runtime=runtime,
            **settings,
        )
        with Progress(steps, title=f"matching latents, ipc {ipc}") as bar:
            for _ in loop:
                bar.update()
                bar.read()
    return *latents.images(runtime), latents.stored().nbytes


@dataclass
class MatchedSets:
    """Matched sets of generators, each made in `steps` steps when it is first asked for, and kept in
    folder/drawn.

    trained: fingerprint of data.train. made: the sets that this process has read, by their files.
    """

    steps: int
    data: Data
    trained: str
    folder: Path
    val_size: int
    seed: int
    runtime: Runtime
    made: dict[Path, tuple[Tensor, Tensor, int]] = field(default_factory=dict)

    @property
    def description(self) -> str:
        """What a row of results holds of the sets."""
        return (
            f"matched, {self.steps} steps, {' '.join(RECIPE['pool'])}, {TEACHER_EPOCHS} epochs, "
            f"seed {self.seed}"
        )

    def images(self, generator: nn.Module, fields: dict, ipc: int) -> tuple[Tensor, Tensor, int]:
        """Return uint8 images (N, C, H, W), labels (N,) and the bytes of the latents.

        fields: what distinguishes the generator. Every rank has to make the first call for a set.
        """
        settings = (self.description, fields, ipc, self.trained)
        path = kept_path(self.folder / "drawn", f"matched_ipc{ipc}", ".safetensors", *settings)
        if path not in self.made:
            teachers = make_teachers(
                RECIPE["pool"],
                TEACHER_EPOCHS,
                self.data,
                self.folder,
                self.val_size,
                self.seed,
                self.runtime,
            )
            make_once(path, lambda: self._make(path, generator, ipc, teachers), self.runtime)
            kept = {name: tensor.to(self.runtime.device) for name, tensor in load_file(path).items()}
            self.made[path] = kept["images"], kept["labels"], int(kept["num_bytes"])
        return self.made[path]

    def _make(self, path: Path, generator: nn.Module, ipc: int, teachers: Sequence[Classifier]) -> None:
        alone = replace(self.runtime, rank=0, world_size=1)  # the other ranks wait
        images, labels, size = matched_set(
            generator, self.data.train, self.data.info, ipc, self.steps, teachers, self.seed, alone
        )
        tensors = {"images": images.cpu(), "labels": labels.cpu(), "num_bytes": torch.tensor(size)}
        write_tensors(path, lambda temporary: temporary.write_bytes(save(tensors)))
