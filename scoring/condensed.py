"""Sets of condensed images: made once, kept in a file, and stored raw or by a codec."""

import itertools
import json
import math
import time
from dataclasses import asdict
from pathlib import Path

import torch

from data import Data, ImageSet, to_float
from engine.files import make_folder, read_checkpoint, read_plain, short_hash, write_tensors
from engine.progress import Progress
from engine.runtime import Runtime
from engine.seeds import derive_seed, rng_state, seeded, set_rng_state
from engine.tensors import to_host
from models.condense import Condensed, Condensing
from scoring.sources import Fixed, WithinBytes
from scoring.storage import LENGTH_BYTES, LOSSY, decode_images, encode_images, make_codec, roundtrip
from utils import FailedRun

SAVE_SECONDS = 60.0  # between two saves of the progress
READ_STEPS = 50  # between two readings of the loss


class CondensedSets:
    """Condensed sets of the training images, of any number of images a class; each is made when it is first
    asked for.

    The files lie in folder/condensed, named by a hash of all that the set depends on, so that the same
    command finds them again; `--source file` reads them too. codec, quality: how the images are stored.
    trained: fingerprint of data.train.
    """

    def __init__(
        self,
        data: Data,
        how: Condensing,
        codec: str,
        quality: int,
        folder: Path,
        seed: int,
        trained: str,
        runtime: Runtime,
    ):
        self.data, self.how, self.codec, self.quality = data, how, codec, quality
        self.folder, self.seed, self.trained, self.runtime = folder / "condensed", seed, trained, runtime
        self.made: dict[int, ImageSet] = {}
        self.about = {
            "condensing": asdict(how),
            "codec": codec,
            "quality": quality if codec in LOSSY else None,
        }

    def images(self, ipc: int) -> ImageSet:
        """The set of `ipc` images a class, uint8, as they were optimised."""
        if ipc not in self.made:
            seen = (
                [self.codec, self.quality] if self.codec in LOSSY else []
            )  # by the images while they are optimised
            how = asdict(self.how)
            if self.how.in_step(ipc) == ipc:
                del how["images"]  # so that it is found however all of them were asked for
            about = json.dumps([how, ipc, self.seed, self.trained, self.runtime.amp, *seen])
            path = self.folder / f"ipc{ipc}_{short_hash(about)}.pt"
            self.runtime.on_main(lambda: None if path.exists() else self._make(ipc, path))
            self.made[ipc] = ImageSet(*read_plain(path, "condensed images and their labels")).to(
                self.runtime.device
            )
        return self.made[ipc]

    def _make(self, ipc: int, path: Path) -> None:
        """Condense a set and write it to `path`, going on from the progress that an earlier start has saved
        beside it."""
        make_folder(self.folder)
        info, progress, device, done, total = (
            self.data.info,
            path.with_suffix(".progress"),
            self.runtime.device,
            0,
            self.how.steps,
        )
        with seeded(device, self.seed, "condense", ipc):
            lossy = roundtrip(self.codec, make_codec(self.codec, self.quality, info), info)
            condensed = Condensed(
                self.data.train,
                ipc,
                self.how,
                info,
                derive_seed(self.seed, "condense", ipc),
                self.runtime,
                lossy,
            )
            if progress.exists():
                state = read_checkpoint(progress)
                condensed.load_state_dict(state), set_rng_state(state["rng"], device)
                done = state["step"]
            saved = time.monotonic()
            with Progress(total, done, f"condensing, ipc {ipc}") as bar:
                for step, losses in enumerate(
                    itertools.islice(condensed.steps(done), total - done), done + 1
                ):
                    bar.update()
                    if step % READ_STEPS == 0 or step == total:
                        bar.read(values={name: read(value.item(), step) for name, value in losses.items()})
                    if time.monotonic() - saved >= SAVE_SECONDS and step < total:
                        state = to_host(condensed.state_dict()) | {"step": step, "rng": rng_state(device)}
                        write_tensors(progress, lambda file, state=state: torch.save(state, file))
                        saved = time.monotonic()
        images = condensed.contents().to(torch.device("cpu"))
        write_tensors(path, lambda file: torch.save((images.images, images.labels), file))
        progress.unlink(missing_ok=True)

    def fixed(self, ipc: int) -> Fixed:
        """A source of `ipc` images a class, decoded from what is stored."""
        found, codec = self.images(ipc), make_codec(self.codec, self.quality, self.data.info)
        if codec is None:
            return Fixed(to_float(found.images), found.labels)
        codes = encode_images(codec, found.images)
        images = to_float(decode_images(codec, codes, self.data.info)).to(self.runtime.device)
        return Fixed(images, found.labels, sum(len(code) + LENGTH_BYTES for code in codes) + codec.shared)

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


def read(loss: float, step: int) -> float:
    """The loss of a step. Raises FailedRun if it is not finite."""
    if not math.isfinite(loss):
        raise FailedRun(f"loss_condense is not finite at step {step}; a smaller --condense-lr may help")
    return loss
