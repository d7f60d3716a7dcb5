"""The registry of networks by name: classifiers, and pairs of a generator and a discriminator."""

from collections.abc import Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from augment import Transform
from data import DataInfo
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
# The name of the narrow network in DiM's commands; what is printed or stored has the full name.
ALIASES = {"resnet18": "resnet18_w32"}


class Players(NamedTuple):
    """The classes of a generator and its discriminator, and their default width.

    At that width the generator is no larger than DiM's.
    """

    generator: type[nn.Module]
    discriminator: type[nn.Module]
    width: int


GANS = {
    "dim": Players(Generator, Discriminator, 196),
    "resnet": Players(ResNetGenerator, ResNetDiscriminator, 224),
}


class Classifier(nn.Module):
    """A network that takes images in [-1, 1].

    It is the only place where the mean and standard deviation of the set are used.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, info: DataInfo):
        super().__init__()
        self.network = network
        # The statistics are of images in [0, 1]; here they are converted to those of images in [-1, 1].
        self.register_buffer("mean", torch.tensor(info.mean).view(1, -1, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(info.std).view(1, -1, 1, 1) * 2, persistent=False)

    def forward(self, images: Tensor, augment: Transform | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] -> logits (B, K) in float32.

        They are normalised, then augmented, then given to the network.
        """
        return self.logits_and_features(images, augment)[0]

    def logits_and_features(
        self, images: Tensor, augment: Transform | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The logits (B, K), and the output of each of the network's stages."""
        # bf16 coordinates would move the pixels of an augmentation
        with torch.autocast(images.device.type, enabled=False):
            x = (images.float() - self.mean) / self.std
            x = x if augment is None else augment(x)
        features = self.network.features(x)
        return self.network.head(features[-1]).float(), features


def network_name(name: str, flag: str = "") -> str:
    """The registry's name for a network or an alias. Raises UsageError, which names `flag`, if unknown."""
    name = ALIASES.get(name, name)
    if name not in NETWORKS:
        expected = ", ".join([*NETWORKS, *ALIASES])
        raise UsageError(f"{flag and f'{flag} {name}: '}unknown network {name!r}, expected one of {expected}")
    return name


def build_classifier(name: str, info: DataInfo) -> Classifier:
    """A freshly initialised classifier for the images of `info`."""
    return Classifier(NETWORKS[network_name(name)](info.channels, info.image_size, info.num_classes), info)


def describe_networks(names: Iterable[str], info: DataInfo, **others: nn.Module) -> str:
    """One line for the user: the parameters of the other networks and of the classifiers in `names`."""
    with torch.device("meta"):  # no memory, and no random numbers
        modules = others | {name: build_classifier(name, info) for name in names}
    counts = (f"{name} {sum(p.numel() for p in module.parameters()):,}" for name, module in modules.items())
    return f"networks: {', '.join(counts)} parameters"


def build_generator(config: dict) -> nn.Module:
    """A freshly initialised generator.

    config: its constructor values, and optionally "gan", the name of its pair (default "dim").
    """
    values = dict(config)
    name = values.pop("gan", "dim")
    if name not in GANS:
        raise UsageError(f"--gan {name}: unknown, expected one of {', '.join(GANS)}")
    return GANS[name].generator(**values)


def build_gan(config: dict, num_classes: int | None = None) -> tuple[nn.Module, nn.Module]:
    """A freshly initialised generator and discriminator.

    config: as for build_generator. num_classes: of the discriminator, if others than the generator's.
    """
    generator = build_generator(config)
    values = config | {"num_classes": num_classes or config["num_classes"]}
    name = values.pop("gan", "dim")
    del values["z_dim"]
    return generator, GANS[name].discriminator(**values)
