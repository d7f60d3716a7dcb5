"""DiM's conditional generator and its discriminator (Wang et al. 2023, arXiv:2303.04707), and the pair in
training."""

import argparse
import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from augment import draw_operations
from engine.optim import ADAM_BETAS, follow, load_optimizer, make_adam, set_rate
from engine.runtime import Runtime
from engine.seeds import derive_seed, seeded
from engine.tensors import eval_mode
from losses import discriminator_loss, gradient_penalty, hinge_loss
from utils import UsageError, count, decay, nonnegative, positive, positive_int, seed_number, two_or_more

IMAGE_SIZES = (28, 32)
LR_DECAYS = ("none", "linear")


class ConditionalGenerator(nn.Module):
    """Base of generators (z, y) -> images (B, channels, image_size, image_size) in [-1, 1].

    z: (B, z_dim) standard normals, whose first num_classes entries are overwritten by one-hot(y); y: (B,).
    """

    def __init__(self, num_classes: int, channels: int, image_size: int, width: int, z_dim: int):
        super().__init__()
        check_sizes(image_size, width)
        if z_dim <= num_classes:
            raise UsageError(
                f"--z-dim {z_dim}: expected more than the {num_classes} classes, whose one-hot code it holds"
            )
        self.num_classes = num_classes
        self.channels = channels
        self.image_size = image_size
        self.width = width
        self.z_dim = z_dim
        self.fc1 = nn.Linear(z_dim, width * 4 * 4)

    def project(self, z: Tensor, y: Tensor) -> Tensor:
        """The first layer, fc1, of z with the code of y: (B, width * 4 * 4)."""
        return self.fc1(torch.cat([F.one_hot(y, self.num_classes).to(z.dtype), z[:, self.num_classes :]], 1))

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,), z drawn on y's device, from `rng` if given."""
        return self(torch.randn(len(y), self.z_dim, device=y.device, generator=rng), y)


class Generator(ConditionalGenerator):
    """DiM's generator."""

    DOUBLING = (1, 5, 7)  # layers that double the side: 4 -> 8 -> 16 -> 32, or 4 -> 7 -> 14 -> 28

    def __init__(
        self, num_classes: int, channels: int = 3, image_size: int = 32, width: int = 196, z_dim: int = 100
    ):
        super().__init__(num_classes, channels, image_size, width, z_dim)
        self.bn0 = nn.BatchNorm1d(width * 4 * 4)
        for i in range(1, 8):
            if i in self.DOUBLING:
                kernel = 3 if i == 1 and image_size == 28 else 4
                conv = nn.ConvTranspose2d(width, width, kernel, stride=2, padding=1)
            else:
                conv = nn.Conv2d(width, width, 3, padding=1)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
        self.conv8 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.project(z, y))).view(-1, self.width, 4, 4)
        for i in range(1, 8):
            x = F.relu(getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(x)))
        return torch.tanh(self.conv8(x).float())


class Discriminator(nn.Module):
    """x (B, C, H, W) in [-1, 1] -> (scores (B,), class logits (B, K)), both float32."""

    STRIDES = (1, 2, 1, 2, 1, 1, 1, 2)

    def __init__(self, num_classes: int, channels: int = 3, image_size: int = 32, width: int = 196):
        super().__init__()
        check_sizes(image_size, width)
        side = image_size
        for i, stride in enumerate(self.STRIDES, start=1):
            side = (side - 1) // stride + 1
            self.add_module(
                f"conv{i}", nn.Conv2d(channels if i == 1 else width, width, 3, stride=stride, padding=1)
            )
            self.add_module(f"ln{i}", nn.LayerNorm((width, side, side)))
        self.fc1 = nn.Linear(width, 1)
        self.fc10 = nn.Linear(width, num_classes)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # y is used by other discriminators
        for i in range(1, len(self.STRIDES) + 1):
            x = F.leaky_relu(getattr(self, f"ln{i}")(getattr(self, f"conv{i}")(x)), 0.01)
        x = F.max_pool2d(x, 4).flatten(1)  # (B, width)
        return self.fc1(x).squeeze(1).float(), self.fc10(x).float()


def check_sizes(image_size: int, width: int) -> None:
    """Raise UsageError if no generator and discriminator of these sizes can be built."""
    if image_size not in IMAGE_SIZES:
        raise UsageError(f"--image-size {image_size}: expected one of {', '.join(map(str, IMAGE_SIZES))}")
    if width < 1:
        raise UsageError(f"--width {width}: expected a whole number >= 1")


class GAN:
    """A generator and a discriminator in training, on their device, with their Adam optimisers and the
    generator's moving average.

    discriminator: None for a generator that is trained by matching alone. lr, lr_d: learning rates of the
    generator and the discriminator (default: the same). betas: of the generator's Adam. ema: decay of the
    moving average per step, 0 = no average. Step t uses min(ema, (1 + t) / (10 + t)), so that the weights of
    the first steps are soon forgotten.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module | None,
        lr: float,
        ema: float = 0.0,
        lr_d: float | None = None,
        betas: tuple[float, float] = ADAM_BETAS,
    ):
        self.generator = generator
        self.discriminator = discriminator
        self.ema = ema
        self.generator_ema = copy.deepcopy(generator).requires_grad_(False) if ema else None
        self.ema_steps = torch.zeros((), device=next(generator.parameters()).device)
        self.players = {"generator": generator}
        self.rates = {"optim_g": lr}
        self.optim_g = make_adam(list(generator.parameters()), lr, betas)
        self.optim_d = None
        if discriminator is not None:
            self.players["discriminator"] = discriminator
            self.rates["optim_d"] = lr_d or lr
            self.optim_d = make_adam(list(discriminator.parameters()), lr_d or lr)

    def train(self) -> "GAN":
        """Put the players in train mode, and return the pair."""
        for player in self.players.values():
            player.train()
        return self

    @property
    def deployed(self) -> nn.Module:
        """The generator to sample from: the moving average if there is one."""
        return self.generator if self.generator_ema is None else self.generator_ema

    def set_rates(self, factor: float) -> None:
        """Set both learning rates to `factor` times their initial values."""
        for name, lr in self.rates.items():
            set_rate(getattr(self, name), lr * factor)

    def update_ema(self) -> None:
        """Move the average towards the generator by one step. BatchNorm's statistics are copied."""
        if self.generator_ema is not None:
            follow(self.generator_ema, self.generator, self.ema_steps, self.ema)

    def state_dict(self) -> dict:
        """The parts by their names in a checkpoint."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator and self.discriminator.state_dict(),
            "generator_ema": self.generator_ema and self.generator_ema.state_dict(),
            "ema_steps": self.ema_steps,
            "optim_g": self.optim_g.state_dict(),
            "optim_d": self.optim_d and self.optim_d.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what state_dict() returned."""
        for name, player in self.players.items():
            player.load_state_dict(state[name])
        for name in self.rates:
            load_optimizer(getattr(self, name), state[name])
        if self.generator_ema is not None:
            self.generator_ema.load_state_dict(state["generator_ema"])
            self.ema_steps.copy_(state["ema_steps"])


@torch.no_grad()
def estimate_statistics(
    generator: nn.Module,
    batches: int,
    batch_size: int,
    seed: int,
    runtime: Runtime,
    classes: Tensor | None = None,
) -> None:
    """Set the generator's BatchNorm statistics to their means over `batches` batches of generated images.

    Labels are drawn uniformly, from `classes` if given. Averaged weights have other statistics than the
    weights they were averaged from (Izmailov et al. 2018, arXiv:1803.05407, 3.3). The state of the
    surrounding random numbers is restored.
    """
    norms = [m for m in generator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = generator.training
    device = next(generator.parameters()).device
    for norm in norms:
        norm.reset_running_stats()
    generator.train()
    with seeded(device, seed, "statistics"), runtime.autocast():
        for i in range(batches):
            for norm in norms:
                # a plain mean over the batches; None does the same, but reads a count from the device
                norm.momentum = 1 / (i + 1)
            generator.sample(uniform_labels(generator.num_classes, batch_size, device, classes))
    generator.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def uniform_labels(num_classes: int, n: int, device: torch.device, classes: Tensor | None = None) -> Tensor:
    """Labels (n,) drawn uniformly on `device` from all classes, or from `classes` (M,)."""
    labels = torch.randint(num_classes if classes is None else len(classes), (n,), device=device)
    return labels if classes is None else classes[labels]


def discriminator_step(
    gan: GAN,
    real: Tensor,
    y: Tensor,
    gp_weight: float,
    runtime: Runtime,
    diffaug: tuple[str, ...] = (),
    classes: Tensor | None = None,
) -> Tensor:
    """Update the discriminator once, on real images (B, C, H, W) of labels y and as many fake ones, and
    return its loss.

    The labels of the fake images are drawn uniformly, from `classes` if given. diffaug: operations for
    differentiable_augment. With class logits, and the penalty GP taken in float32:
        loss_d = E[D(fake)] - E[D(real)] + CE(fake) + CE(real) + gp_weight * GP
    Without class logits:
        loss_d = E[relu(1 - D(real, y))] + E[relu(1 + D(fake, y))]
    """
    discriminator = gan.discriminator
    fake_y = uniform_labels(gan.generator.num_classes, len(y), y.device, classes)
    with runtime.autocast():
        with torch.no_grad():
            fake = gan.generator.sample(fake_y)
        images = differentiable_augment(torch.cat([real, fake]), diffaug)
        scores, logits = discriminator(images, torch.cat([y, fake_y]))  # (2B,), (2B, K) or None
    n = len(real)
    if logits is None:
        loss = hinge_loss(scores[:n], scores[n:])
    else:
        loss = discriminator_loss(scores[:n], logits[:n], y, scores[n:], logits[n:], fake_y)
        loss = loss + gp_weight * gradient_penalty(discriminator, images[:n], images[n:])
    gan.optim_d.zero_grad()
    loss.backward()
    runtime.update(gan.optim_d)
    return loss


def add_gan_flags(parser: argparse.ArgumentParser, epochs: int, batch_size: int, lr: float) -> None:
    """Declare the flags of a GAN's training, the same in stages 1 and 2 but for the defaults given here."""
    add = parser.add_argument
    add(
        "--epochs",
        type=positive_int,
        default=epochs,
        help="passes over the set; a larger number continues a finished run",
    )
    add("--batch-size", type=two_or_more, default=batch_size, help="real images per step")
    add("--lr", type=positive, default=lr, help="learning rate of Adam for generator and discriminator")
    add("--lr-d", type=positive, help="learning rate of the discriminator (default: the generator's)")
    add("--lr-decay", choices=LR_DECAYS, default="none", help="linear: both rates fall to zero over --epochs")
    add("--gp-weight", type=nonnegative, default=10.0, help="weight of DiM's gradient penalty")
    add("--diffaug", default="none", help="DiffAugment of real and fake images, such as color_crop_cutout")
    add("--ema", type=decay, default=0.0, help="decay of the generator's moving average; 0 = off")
    add(
        "--restat",
        type=count,
        default=0,
        help="batches that estimate BatchNorm's statistics after an epoch; 0 = off",
    )
    add("--seed", type=seed_number, default=0, help="seed of all random numbers")


def rate_factor(lr_decay: str, done: int, total: int) -> float:
    """Factor of the learning rate after `done` of `total` steps: 1, or with "linear" decay a line from 1 to
    0."""
    return 1.0 if lr_decay == "none" else 1 - done / total


def length_of_decay(lr_decay: str, epochs: int) -> dict[str, int]:
    """The inputs that must be the same when a run is continued because its learning rates depend on them (see
    RunFolder)."""
    return {} if lr_decay == "none" else {"decay over --epochs": epochs}


def differentiable_augment(images: Tensor, operations: tuple[str, ...]) -> Tensor:
    """DiffAugment (Zhao et al. 2020, arXiv:2006.10738): `operations`, drawn for each of the images (B, C, H,
    W) in [-1, 1].

    It is applied to real and fake images alike, in the steps of both players; gradients pass through it.
    """
    if not operations:
        return images
    with torch.autocast(images.device.type, enabled=False):  # bf16 coordinates would move the pixels
        return draw_operations(operations, len(images), images.shape[-1], images.device)(images)


@torch.no_grad()
def sample_grid(generator: nn.Module, seed: int, rows: int = 10) -> Tensor:
    """A picture (C, H, W) in [-1, 1] with a column for each of the first ten classes and a row for each
    latent.

    The latents depend on `seed` alone, so they are the same at every call.
    """
    columns = min(generator.num_classes, 10)
    device = next(generator.parameters()).device
    rng = torch.Generator().manual_seed(derive_seed(seed, "pictures"))
    z = torch.randn(rows, generator.z_dim, generator=rng).repeat_interleave(columns, 0).to(device)
    with eval_mode(generator):
        images = generator(z, torch.arange(columns, device=device).repeat(rows))
    return image_grid(images, columns)


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Arrange images (rows * columns, C, h, w) in [-1, 1] as one picture (C, H, W), on the CPU."""
    images = F.pad(images, (1, 1, 1, 1), value=-1.0)
    n, channels, height, width = images.shape
    grid = images.view(n // columns, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, n // columns * height, columns * width).cpu()
