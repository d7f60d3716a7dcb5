"""Sets of condensed images: made once, kept in a file, and stored raw or by a codec."""

import itertools
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from data import Data, ImageSet, to_float
from engine.files import read_checkpoint, read_plain, write_tensors
from engine.progress import Progress
from engine.runtime import Runtime
from engine.seeds import derive_seed, rng_state, seeded, set_rng_state
from engine.tensors import to_host
from models.condense import Condensed, Condensing
from scoring.kept import kept_path, make_once
from scoring.sources import Fixed, WithinBytes
from scoring.storage import LENGTH_BYTES, LOSSY, decode_images, encode_images, make_codec, roundtrip
from utils import FailedRun

SAVE_SECONDS = 60.0  # between two saves of the progress
READ_STEPS = 50  # between two readings of the loss


@dataclass
class CondensedSets:
    """Condensed sets of the training images, of any number of images a class; each is made when it is first
    asked for, which every rank has to do.

    The files lie in folder/condensed; `--source file` reads them too. codec, quality: how the images are
    stored. trained: fingerprint of data.train. made: the sets that this process has read, by images a class.
    """

    data: Data
    condensing: Condensing
    codec: str
    quality: int
    folder: Path
    seed: int
    trained: str
    runtime: Runtime
    made: dict[int, ImageSet] = field(default_factory=dict)

    @property
    def fields(self) -> dict:
        """What a row of results holds of the sets."""
        quality = self.quality if self.codec in LOSSY else None
        return {"condensing": asdict(self.condensing), "codec": self.codec, "quality": quality}

    def images(self, ipc: int) -> ImageSet:
        """The set of `ipc` images a class, uint8, as they were optimised."""
        if ipc not in self.made:
            condensing = asdict(self.condensing)
            if self.condensing.in_step(ipc) == ipc:
                del condensing["images"]  # the same file, in whichever way all images were asked for
            # a lossy codec changes what is optimised
            lossy = [self.codec, self.quality] if self.codec in LOSSY else []
            settings = (condensing, ipc, self.seed, self.trained, self.runtime.amp, *lossy)
            path = kept_path(self.folder / "condensed", f"ipc{ipc}", ".pt", *settings)
            make_once(path, lambda: self._make(ipc, path), self.runtime)
            images = ImageSet(*read_plain(path, "condensed images and their labels"))
            self.made[ipc] = images.to(self.runtime.device)
        return self.made[ipc]

    def _make(self, ipc: int, path: Path) -> None:
        """Condense a set and write it to `path`, going on from the progress that an earlier start has saved
        beside it."""
        info = self.data.info
        device = self.runtime.device
        total = self.condensing.steps
        progress = path.with_suffix(".progress")
        done = 0
        with seeded(device, self.seed, "condense", ipc):
            lossy = roundtrip(self.codec, make_codec(self.codec, self.quality, info), info)
            seed = derive_seed(self.seed, "condense", ipc)
            condensed = Condensed(self.data.train, ipc, self.condensing, info, seed, self.runtime, lossy)
            if progress.exists():
                state = read_checkpoint(progress)
                condensed.load_state_dict(state)
                set_rng_state(state["rng"], device)
                done = state["step"]
            saved = time.monotonic()
            with Progress(total, done, f"condensing, ipc {ipc}") as bar:
                steps = itertools.islice(condensed.steps(done), total - done)
                for step, losses in enumerate(steps, done + 1):
                    bar.update()
                    if step % READ_STEPS == 0 or step == total:
                        values = {name: value.item() for name, value in losses.items()}
                        if not all(map(math.isfinite, values.values())):
                            raise FailedRun(
                                f"loss_condense is not finite at step {step}; "
                                "a smaller --condense-lr may help"
                            )
                        bar.read(values=values)
                    if time.monotonic() - saved >= SAVE_SECONDS and step < total:
                        state = to_host(condensed.state_dict()) | {"step": step, "rng": rng_state(device)}
                        write_tensors(progress, lambda file, state=state: torch.save(state, file))
                        saved = time.monotonic()
        images = condensed.contents().to(torch.device("cpu"))
        write_tensors(path, lambda file: torch.save((images.images, images.labels), file))
        progress.unlink(missing_ok=True)

    def fixed(self, ipc: int) -> Fixed:
        """A source of `ipc` images a class, decoded from what is stored."""
        stored = self.images(ipc)
        codec = make_codec(self.codec, self.quality, self.data.info)
        if codec is None:
            return Fixed(to_float(stored.images), stored.labels)
        codes = encode_images(codec, stored.images)
        decoded = decode_images(codec, codes, self.data.info).to(self.runtime.device)
        num_bytes = sum(len(code) + LENGTH_BYTES for code in codes) + codec.shared
        return Fixed(to_float(decoded), stored.labels, num_bytes)

    def within(self, ipc: int, max_bytes: int, item_bytes: int) -> WithinBytes:
        """A source of as many images as fit into `max_bytes`, streamed `ipc` images a class; item_bytes: see
        WithinBytes.

        As many of each class are condensed as real images would fit in this codec; those that do not fit
        after all are left out.
        """

        def source(images: ImageSet) -> WithinBytes:
            return WithinBytes(images, ipc, self.data.info, max_bytes, self.codec, self.quality, item_bytes)

        real, _ = source(self.data.train).choose(self.seed)
        return source(self.images(int(real.labels.bincount().min())))
