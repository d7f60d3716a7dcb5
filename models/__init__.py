"""The registry of networks by name, and checkpoints of generators and classifiers."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from augment import Transform
from data import DATASETS, DataInfo
from engine.files import read_checkpoint, read_safetensors, write_tensors
from models.convnet import ConvNet
from models.densenet import DenseNet
from models.gan import Discriminator, Generator
from models.mlp import MLP
from models.resnet import ResNet
from models.resnet_gan import ResNetDiscriminator, ResNetGenerator
from utils import UsageError

# Name -> constructor(channels, image_size, num_classes). Networks of several widths end in _wN; "convnet" is
# the usual one of width 128.
NETWORKS = {
    "convnet": ConvNet,
    "convnet_w32": partial(ConvNet, width=32),
    "resnet10": partial(ResNet, width=32, blocks=1),
    "resnet18_w32": partial(ResNet, width=32, blocks=2),
    "resnet10_ap": partial(ResNet, width=32, blocks=1, pool=True),
    "resnet18_ap": partial(ResNet, width=32, blocks=2, pool=True),
    "densenet": DenseNet,
    "mlp_w100": partial(MLP, width=100),
    "mlp_w400": partial(MLP, width=400),
    "resnet18_w64": partial(ResNet, width=64, blocks=2, norm="batch"),
}
STORAGES = ("fp32", "fp16", "int8")  # precisions of a stored generator; int8 with a scale per output channel
SCALE = ".scale"  # suffix of the names of scales
# The name of the narrow network in DiM's commands; what is printed or stored has the full name.
ALIASES = {"resnet18": "resnet18_w32"}


class Players(NamedTuple):
    """The classes of a generator and its discriminator, and the default width, at which the generator is no
    larger than DiM's."""

    generator: type[nn.Module]
    discriminator: type[nn.Module]
    width: int


GANS = {
    "dim": Players(Generator, Discriminator, 196),
    "resnet": Players(ResNetGenerator, ResNetDiscriminator, 224),
}


class Classifier(nn.Module):
    """A network that takes images in [-1, 1]. It is the only place where the mean and standard deviation of
    the set are used."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, info: DataInfo):
        super().__init__()
        self.network = network
        # The statistics are of images in [0, 1]; here they are converted to those of images in [-1, 1].
        self.register_buffer("mean", torch.tensor(info.mean).view(1, -1, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, -1, 1, 1) * 2, persistent=False)

    def forward(self, images: Tensor, augment: Transform | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> logits (B, K) in float32: normalise, then augment, then the
        network."""
        return self.logits_and_features(images, augment)[0]

    def logits_and_features(
        self, images: Tensor, augment: Transform | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The logits (B, K), and the output of each of the network's stages."""
        with torch.autocast(
            images.device.type, enabled=False
        ):  # bf16 coordinates would move the pixels of an augmentation
            x = (images.float() - self.mean) / self.std
            x = x if augment is None else augment(x)
        features = self.network.features(x)
        return self.network.head(features[-1]).float(), features


def network_name(name: str, flag: str = "") -> str:
    """The registry's name for a network or an alias. Raises UsageError, which names `flag`, if there is
    none."""
    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        raise UsageError(
            f"{flag and f'{flag} {name}: '}unknown network {name!r}, expected one of "
            f"{', '.join([*NETWORKS, *ALIASES])}"
        )
    return name


def build_classifier(name: str, info: DataInfo) -> Classifier:
    """A freshly initialised classifier for the images of `info`."""
    return Classifier(NETWORKS[network_name(name)](info.channels, info.image_size, info.num_classes), info)


def describe_networks(names: Iterable[str], info: DataInfo, **others: nn.Module) -> str:
    """One line for the reader: the parameters of other networks by name, and of the classifiers in
    `names`."""
    with torch.device("meta"):  # no memory, and no random numbers
        found = others | {name: build_classifier(name, info) for name in names}
    counts = (f"{name} {sum(p.numel() for p in module.parameters()):,}" for name, module in found.items())
    return f"networks: {', '.join(counts)} parameters"


def build_generator(config: dict) -> nn.Module:
    """A freshly initialised generator. config: its constructor values, and optionally "gan", the name of its
    pair (default "dim")."""
    name = config.get("gan", "dim")
    if name not in GANS:
        raise UsageError(f"--gan {name}: unknown, expected one of {', '.join(GANS)}")
    return GANS[name].generator(**{k: v for k, v in config.items() if k != "gan"})


def build_gan(config: dict, num_classes: int | None = None) -> tuple[nn.Module, nn.Module]:
    """A freshly initialised generator and discriminator; config as for build_generator. num_classes: of the
    discriminator, if others."""
    generator = build_generator(config)
    sizes = {k: v for k, v in config.items() if k not in ("gan", "z_dim")} | (
        {"num_classes": num_classes} if num_classes else {}
    )
    return generator, GANS[config.get("gan", "dim")].discriminator(**sizes)


@dataclass(frozen=True)
class GanCheckpoint:
    """A checkpoint of this code or of the reference code. info and val_size are None if the file does not
    contain them."""

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
        """The generator and discriminator to go on training, on the CPU. Raises UsageError if the file has no
        discriminator."""
        if self.state.get("discriminator") is None:
            raise UsageError(
                f"{self.path}: holds a generator without its discriminator, expected a checkpoint of GAN "
                "training "
                "(matching alone, pool_match.py --gan-weight 0, needs none)"
            )
        _, discriminator = self._build()
        self._load(discriminator, "discriminator")
        return self.trainee(), discriminator

    def data_name(self, asked: str | None) -> str:
        """The name of the data set: from the file, else `asked`, the value of --data, else "cifar10" if it
        has the generator's sizes.

        Raises UsageError if the file and --data contradict each other, or if neither names a set and the
        sizes are not those of cifar10.
        """
        if self.info is None:
            if asked is None and not self._fits(DATASETS["cifar10"].info):
                sizes = "{channels} x {image_size} x {image_size} with {num_classes} classes".format(
                    **self.config
                )
                fitting = [name for name, row in DATASETS.items() if self._fits(row.info)]
                hint = ", ".join([*fitting, "folder"])
                raise UsageError(
                    f"{self.path}: names no data set, found a generator of {sizes}; name its set with "
                    f"--data: {hint}"
                )
            return asked or "cifar10"
        if asked not in (None, self.info.name):
            raise UsageError(f"--data {asked}: {self.path} was trained on {self.info.name}")
        return self.info.name

    def _fits(self, info: DataInfo) -> bool:
        return all(
            getattr(info, name) == self.config[name] for name in ("channels", "image_size", "num_classes")
        )

    def check_data(self, info: DataInfo) -> None:
        """Raise UsageError unless `info` has the channels, image size and number of classes of this
        generator."""
        for name in ("channels", "image_size", "num_classes"):
            if getattr(info, name) != self.config[name]:
                raise UsageError(
                    f"{self.path}: was made for {name.replace('_', ' ')} {self.config[name]}, "
                    f"found {getattr(info, name)} in {info.name}; name its set with --data"
                )

    def _build(self) -> tuple[nn.Module, nn.Module]:
        try:
            return build_gan(self.config)
        except (TypeError, RuntimeError, UsageError) as error:
            raise UsageError(
                f"{self.path}: no networks of the sizes it names, {self.config}: {error}"
            ) from None

    def _load(self, module: nn.Module, name: str) -> None:
        try:
            module.load_state_dict(self.state[name])
        except (RuntimeError, KeyError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise UsageError(f"{self.path}: its {name} does not fit {self.config}: {reason}") from None


def read_gan(path: str | Path) -> GanCheckpoint:
    """Read a checkpoint of this code or of the reference code; the sizes of the latter are inferred from its
    tensors.

    A .safetensors file, as storage.export_generator writes it, holds the generator alone. Raises UsageError
    if the file is missing, damaged, or of another kind.
    """
    if Path(path).suffix == ".safetensors":
        return _read_exported(path)
    state = read_checkpoint(path)
    generator, discriminator = state.get("generator"), state.get("discriminator")
    if not isinstance(generator, dict) or not isinstance(
        discriminator, dict if "config" not in state else dict | None
    ):
        raise UsageError(
            f"{path}: expected a checkpoint with generator and discriminator, found "
            f"{', '.join(map(str, state)) or 'nothing'}"
        )
    for name in ("generator", "discriminator", "generator_ema"):
        if isinstance(state.get(name), dict):
            state[name] = _without_prefix(state[name])
    generator, discriminator = state["generator"], state["discriminator"]
    try:
        if "config" in state:
            return GanCheckpoint(
                Path(path),
                _checked(state["config"]),
                DataInfo.from_dict(state["info"]),
                state["val_size"],
                state,
            )
        config = {
            "num_classes": len(discriminator["fc10.weight"]),
            "channels": len(generator["conv8.weight"]),
            "image_size": 32 if generator["conv1.weight"].shape[-1] == 4 else 28,
            "width": len(generator["conv8.weight"][0]),
            "z_dim": generator["fc1.weight"].shape[1],
        }
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(f"{path}: not a DiM checkpoint: {error} is missing or of another kind") from None
    return GanCheckpoint(Path(path), config, None, None, state)


def _without_prefix(tensors: dict) -> dict:
    """The tensors by their names in the bare module, without what DataParallel (module.) and torch.compile
    (_orig_mod.) put before them."""
    for prefix in ("module.", "_orig_mod.") * 2:
        if tensors and all(str(name).startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _checked(config: dict) -> dict:
    """The constructor values of a generator. Raises KeyError if one is missing."""
    return dict(config) | {
        name: int(config[name]) for name in ("num_classes", "channels", "image_size", "width", "z_dim")
    }


def _read_exported(path: str | Path) -> GanCheckpoint:
    tensors, metadata = read_safetensors(path)
    try:
        about = json.loads(metadata["generator"])
        info, storage = DataInfo.from_dict(about["info"]), str(about["storage"])
        config, val_size = _checked(about["config"]), int(about["val_size"])
        if storage not in STORAGES:
            raise ValueError(f"storage {storage}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a generator exported here: its {error} is missing or of another kind"
        ) from None
    return GanCheckpoint(Path(path), config, info, val_size, {"generator": decode(tensors)}, storage)


def decode(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of storage.encode, in float32: int8 weights are multiplied by the scale of their output
    channel."""
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(SCALE)}
    return {
        name: tensor.float() * tensors[name + SCALE]
        if name + SCALE in tensors
        else tensor.float()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }


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
    """Read what save_classifier wrote. Raises UsageError if the file is missing, damaged, or of another
    kind."""
    state = read_checkpoint(path)
    try:
        network, info, val_size = (
            network_name(state["network"]),
            DataInfo.from_dict(state["info"]),
            int(state["val_size"]),
        )
        classifier = build_classifier(network, info)
        classifier.load_state_dict(state["classifier"])
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise UsageError(
            f"{path}: not a classifier that validate.py --save-classifiers wrote ({reason})"
        ) from None
    return SavedClassifier(classifier.eval().requires_grad_(False), network, info, val_size)


def load_generator(path: str | Path) -> nn.Module:
    """The generator of a checkpoint, ready to deploy: `load_generator("last.pth").sample(torch.arange(10))`.

    In eval mode, on the CPU; the moving average if one was kept. Raises UsageError (a ValueError) for a bad
    file.
    """
    return read_gan(path).generator()
