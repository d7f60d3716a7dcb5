"""Checkpoints of generators and classifiers."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from data import DATASETS, DataInfo
from engine.files import read_checkpoint, read_safetensors, write_tensors
from models.networks import Classifier, build_classifier, build_gan, network_name
from utils import UsageError

STORAGES = ("fp32", "fp16", "int8")  # precisions of a stored generator; int8 with a scale per output channel
SCALE = ".scale"  # suffix of the names of scales
SIZES = ("channels", "image_size", "num_classes")  # what a generator and an image set must agree on


@dataclass(frozen=True)
class GanCheckpoint:
    """A checkpoint; one of the reference code names neither its image set (info) nor val_size."""

    path: Path
    config: dict
    info: DataInfo | None
    val_size: int | None
    state: dict
    storage: str = "fp32"  # of the generator's values in the file

    def generator(self) -> nn.Module:
        """The generator to deploy, in eval mode on the CPU: the moving average if one was kept."""
        return self.trainee().eval().requires_grad_(False)

    def trainee(self) -> nn.Module:
        """The generator to go on training, on the CPU: the moving average if one was kept."""
        generator, _ = self._build()
        self._load(generator, "generator" if self.state.get("generator_ema") is None else "generator_ema")
        return generator

    def players(self) -> tuple[nn.Module, nn.Module]:
        """The generator and discriminator to go on training, on the CPU.

        Raises UsageError if the file has no discriminator.
        """
        if self.state.get("discriminator") is None:
            hint = "(matching alone, pool_match.py --gan-weight 0, needs none)"
            raise UsageError(
                f"{self.path}: holds a generator without its discriminator, expected a checkpoint of GAN "
                f"training {hint}"
            )
        _, discriminator = self._build()
        self._load(discriminator, "discriminator")
        return self.trainee(), discriminator

    def data_name(self, given: str | None) -> str:
        """The name of the data set: from the file, else `given` (--data), else "cifar10" if its sizes fit.

        Raises UsageError if the file and --data contradict each other, or if neither names a set and the
        sizes are not those of cifar10.
        """
        if self.info is not None:
            if given not in (None, self.info.name):
                raise UsageError(f"--data {given}: {self.path} was trained on {self.info.name}")
            return self.info.name
        if given is None and self._misfit(DATASETS["cifar10"].info):
            sizes = "{channels} x {image_size} x {image_size} with {num_classes} classes".format(
                **self.config
            )
            fitting = [name for name, row in DATASETS.items() if not self._misfit(row.info)]
            hint = f"name its set with --data: {', '.join([*fitting, 'folder'])}"
            raise UsageError(f"{self.path}: names no data set, found a generator of {sizes}; {hint}")
        return given or "cifar10"

    def _misfit(self, info: DataInfo) -> str | None:
        """The name of a size in which the generator and `info` differ; None if they fit."""
        return next((name for name in SIZES if getattr(info, name) != self.config[name]), None)

    def check_data(self, info: DataInfo) -> None:
        """Raise UsageError unless `info` has the channels, image size and classes of this generator."""
        if name := self._misfit(info):
            made_for = f"was made for {name.replace('_', ' ')} {self.config[name]}"
            hint = f"found {getattr(info, name)} in {info.name}; name its set with --data"
            raise UsageError(f"{self.path}: {made_for}, {hint}")

    def _build(self) -> tuple[nn.Module, nn.Module]:
        try:
            return build_gan(self.config)
        except (TypeError, RuntimeError, UsageError) as error:
            reason = f"no networks of the sizes it names, {self.config}"
            raise UsageError(f"{self.path}: {reason}: {error}") from None

    def _load(self, module: nn.Module, name: str) -> None:
        try:
            module.load_state_dict(self.state[name])
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UsageError(f"{self.path}: its {name} does not fit {self.config}: {reason}") from None


def read_gan(path: str | Path) -> GanCheckpoint:
    """Read a checkpoint of this code or of the reference code, whose sizes are inferred from its tensors.

    A .safetensors file, as storage.export_generator writes it, holds the generator alone. Raises UsageError
    if the file is missing, damaged, or of another kind.
    """
    if Path(path).suffix == ".safetensors":
        return _read_exported(path)
    state = read_checkpoint(path)
    may_lack = dict | None if "config" in state else dict
    if not isinstance(state.get("generator"), dict) or not isinstance(state.get("discriminator"), may_lack):
        content = ", ".join(map(str, state)) or "nothing"
        raise UsageError(f"{path}: expected a checkpoint with generator and discriminator, found {content}")
    for name in ("generator", "discriminator", "generator_ema"):
        if isinstance(state.get(name), dict):
            state[name] = _without_prefix(state[name])
    generator = state["generator"]
    info = val_size = None
    try:
        if "config" in state:
            config = _checked(state["config"])
            info = DataInfo.from_dict(state["info"])
            val_size = state["val_size"]
        else:
            config = {
                "num_classes": len(state["discriminator"]["fc10.weight"]),
                "channels": len(generator["conv8.weight"]),
                "image_size": 32 if generator["conv1.weight"].shape[-1] == 4 else 28,
                "width": len(generator["conv8.weight"][0]),
                "z_dim": generator["fc1.weight"].shape[1],
            }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(f"{path}: not a DiM checkpoint: {error} is missing or of another kind") from None
    return GanCheckpoint(Path(path), config, info, val_size, state)


def _without_prefix(tensors: dict) -> dict:
    """The tensors by their names in the bare module.

    DataParallel (module.) and torch.compile (_orig_mod.) put a prefix before the names.
    """
    for prefix in ("module.", "_orig_mod.") * 2:
        if tensors and all(str(name).startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _checked(config: dict) -> dict:
    """The constructor values of a generator. Raises KeyError if one is missing."""
    return dict(config) | {name: int(config[name]) for name in (*SIZES, "width", "z_dim")}


def _read_exported(path: str | Path) -> GanCheckpoint:
    tensors, metadata = read_safetensors(path)
    try:
        header = json.loads(metadata["generator"])
        info = DataInfo.from_dict(header["info"])
        storage = str(header["storage"])
        config = _checked(header["config"])
        val_size = int(header["val_size"])
        if storage not in STORAGES:
            raise ValueError(f"storage {storage}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"its {error} is missing or of another kind"
        raise UsageError(f"{path}: not a generator exported here: {reason}") from None
    return GanCheckpoint(Path(path), config, info, val_size, {"generator": decode(tensors)}, storage)


def decode(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of storage.encode, in float32: int8 weights times the scale of their output channel."""
    weights = {}
    for name, tensor in tensors.items():
        if name + SCALE in tensors:
            weights[name] = tensor.float() * tensors[name + SCALE]
        elif not name.endswith(SCALE):
            weights[name] = tensor.float() if tensor.is_floating_point() else tensor
    return weights


@dataclass(frozen=True)
class SavedClassifier:
    """A trained classifier in eval mode on the CPU, without gradients, and what it was trained for."""

    classifier: Classifier
    network: str
    info: DataInfo
    val_size: int


def save_classifier(path: Path, classifier: Classifier, network: str, info: DataInfo, val_size: int) -> None:
    """Write a trained classifier; val_size: how many training images were held out."""
    weights = {name: tensor.cpu() for name, tensor in classifier.state_dict().items()}
    state = {"network": network, "info": info.to_dict(), "val_size": val_size, "classifier": weights}
    write_tensors(path, lambda temporary: torch.save(state, temporary))


def read_classifier(path: str | Path) -> SavedClassifier:
    """Read what save_classifier wrote. Raises UsageError if it is missing, damaged, or of another kind."""
    state = read_checkpoint(path)
    try:
        network = network_name(state["network"])
        info = DataInfo.from_dict(state["info"])
        val_size = int(state["val_size"])
        classifier = build_classifier(network, info)
        classifier.load_state_dict(state["classifier"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        expected = "a classifier that validate.py --save-classifiers wrote"
        raise UsageError(f"{path}: not {expected} ({reason})") from None
    return SavedClassifier(classifier.eval().requires_grad_(False), network, info, val_size)


def load_generator(path: str | Path) -> nn.Module:
    """The generator of a checkpoint, ready to deploy: `load_generator("last.pth").sample(torch.arange(10))`.

    In eval mode, on the CPU; the moving average if one was kept. Raises UsageError (a ValueError) for a bad
    file.
    """
    return read_gan(path).generator()
