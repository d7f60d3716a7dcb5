"""DiM's conditional generator and its discriminator (Wang et al. 2023, arXiv:2303.04707), and the pair in training."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from losses import discriminator_loss, gradient_penalty
from runtime import Runtime, capturable, load_optimizer
from utils import UsageError, derive_seed, eval_mode

IMAGE_SIZES = (28, 32)


class Generator(nn.Module):
    """(z, y) -> images (B, channels, image_size, image_size) in [-1, 1].

    z: (B, z_dim) standard normals, whose first num_classes entries are overwritten by one-hot(y); y: (B,).
    """

    def __init__(self, num_classes: int, channels: int = 3, image_size: int = 32, width: int = 196, z_dim: int = 100):
        super().__init__()
        _check_sizes(image_size, width)
        if z_dim <= num_classes:
            raise UsageError(f"--z-dim {z_dim}: expected more than the {num_classes} classes, whose one-hot code it holds")
        self.num_classes, self.channels, self.image_size, self.width, self.z_dim = num_classes, channels, image_size, width, z_dim
        self.fc1 = nn.Linear(z_dim, width * 4 * 4)
        self.bn0 = nn.BatchNorm1d(width * 4 * 4)
        self.conv1 = nn.ConvTranspose2d(width, width, 4 if image_size == 32 else 3, stride=2, padding=1)  # 4 -> 8 or 7
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv4 = nn.Conv2d(width, width, 3, padding=1)
        self.bn4 = nn.BatchNorm2d(width)
        self.conv5 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)  # -> 16 or 14
        self.bn5 = nn.BatchNorm2d(width)
        self.conv6 = nn.Conv2d(width, width, 3, padding=1)
        self.bn6 = nn.BatchNorm2d(width)
        self.conv7 = nn.ConvTranspose2d(width, width, 4, stride=2, padding=1)  # -> 32 or 28
        self.bn7 = nn.BatchNorm2d(width)
        self.conv8 = nn.Conv2d(width, channels, 3, padding=1)

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        z = torch.cat([F.one_hot(y, self.num_classes).to(z.dtype), z[:, self.num_classes :]], dim=1)
        x = F.relu(self.bn0(self.fc1(z))).view(-1, self.width, 4, 4)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)))
        x = F.relu(self.bn4(self.conv4(x)))
        x = F.relu(self.bn5(self.conv5(x)))
        x = F.relu(self.bn6(self.conv6(x)))
        x = F.relu(self.bn7(self.conv7(x)))
        return torch.tanh(self.conv8(x).float())

    def sample(self, y: Tensor, rng: torch.Generator | None = None) -> Tensor:
        """One image (B, C, H, W) for each label of y (B,), z drawn on y's device, from `rng` if given."""
        return self(torch.randn(len(y), self.z_dim, device=y.device, generator=rng), y)


class Discriminator(nn.Module):
    """x (B, C, H, W) in [-1, 1] -> (scores (B,), class logits (B, K)), both float32."""

    STRIDES = (1, 2, 1, 2, 1, 1, 1, 2)

    def __init__(self, num_classes: int, channels: int = 3, image_size: int = 32, width: int = 196):
        super().__init__()
        _check_sizes(image_size, width)
        side = image_size
        for i, stride in enumerate(self.STRIDES, start=1):
            side = (side - 1) // stride + 1
            self.add_module(f"conv{i}", nn.Conv2d(channels if i == 1 else width, width, 3, stride=stride, padding=1))
            self.add_module(f"ln{i}", nn.LayerNorm((width, side, side)))
        self.fc1 = nn.Linear(width, 1)
        self.fc10 = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for i in range(1, len(self.STRIDES) + 1):
            x = F.leaky_relu(getattr(self, f"ln{i}")(getattr(self, f"conv{i}")(x)), 0.01)
        x = F.max_pool2d(x, 4).flatten(1)  # (B, width)
        return self.fc1(x).squeeze(1).float(), self.fc10(x).float()


def _check_sizes(image_size: int, width: int) -> None:
    if image_size not in IMAGE_SIZES:
        raise UsageError(f"--image-size {image_size}: expected one of {', '.join(map(str, IMAGE_SIZES))}")
    if width < 1:
        raise UsageError(f"--width {width}: expected a whole number >= 1")


class GAN:
    """The pair in training, on its device: generator, discriminator, their Adams, and the generator's moving average.

    ema: decay of that average per step; 0 = none.
    """

    def __init__(self, generator: Generator, discriminator: Discriminator, lr: float, ema: float = 0.0):
        self.generator, self.discriminator, self.ema = generator, discriminator, ema
        self.generator_ema = copy.deepcopy(generator).requires_grad_(False) if ema else None
        self.optim_g, self.optim_d = (
            torch.optim.Adam(player.parameters(), lr=lr, betas=(0.0, 0.9), **capturable(list(player.parameters())))
            for player in (generator, discriminator)
        )

    @property
    def deployed(self) -> Generator:
        """The generator to sample from: the moving average if there is one."""
        return self.generator if self.generator_ema is None else self.generator_ema

    @torch.no_grad()
    def update_ema(self) -> None:
        """Move the average towards the generator; BatchNorm's statistics are copied. Nothing without an average."""
        if self.generator_ema is None:
            return
        targets, sources = list(self.generator_ema.parameters()), list(self.generator.parameters())
        torch._foreach_lerp_(targets, sources, 1 - self.ema)
        for target, source in zip(self.generator_ema.buffers(), self.generator.buffers(), strict=True):
            target.copy_(source)

    def state_dict(self) -> dict:
        """The parts by their names in a checkpoint."""
        return {
            "generator": self.generator.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "generator_ema": self.generator_ema.state_dict() if self.generator_ema is not None else None,
            "optim_g": self.optim_g.state_dict(),
            "optim_d": self.optim_d.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Go on from state_dict()."""
        for name in ("generator", "discriminator"):
            getattr(self, name).load_state_dict(state[name])
        for name in ("optim_g", "optim_d"):
            load_optimizer(getattr(self, name), state[name])
        if self.generator_ema is not None:
            self.generator_ema.load_state_dict(state["generator_ema"])


def discriminator_step(gan: GAN, real: Tensor, y: Tensor, gp_weight: float, runtime: Runtime) -> Tensor:
    """One update of the discriminator on real images (B, C, H, W) of labels y and as many fakes of uniform labels.

    loss_d = E[D(fake)] - E[D(real)] + CE(fake) + CE(real) + gp_weight * GP, returned. The penalty is taken in float32.
    """
    discriminator = gan.discriminator
    fake_y = torch.randint(gan.generator.num_classes, y.shape, device=y.device)
    with runtime.autocast():
        with torch.no_grad():
            fake = gan.generator.sample(fake_y)
        scores, logits = discriminator(torch.cat([real, fake]))  # (2B,), (2B, K)
    n = len(real)
    loss = discriminator_loss(scores[:n], logits[:n], y, scores[n:], logits[n:], fake_y)
    loss = loss + gp_weight * gradient_penalty(discriminator, real, fake)
    gan.optim_d.zero_grad()
    loss.backward()
    runtime.update(gan.optim_d)
    return loss


@torch.no_grad()
def sample_grid(generator: Generator, seed: int, rows: int = 10) -> Tensor:
    """A picture (C, H, W) in [-1, 1]: a column for each of the first ten classes, a row for each z, the same at every call."""
    columns = min(generator.num_classes, 10)
    device = generator.fc1.weight.device
    draw = torch.Generator().manual_seed(derive_seed(seed, "pictures"))
    z = torch.randn(rows, generator.z_dim, generator=draw).repeat_interleave(columns, 0).to(device)
    with eval_mode(generator):
        images = generator(z, torch.arange(columns, device=device).repeat(rows))
    images = F.pad(images, (1, 1, 1, 1), value=-1.0)
    _, channels, height, width = images.shape
    grid = images.view(rows, columns, channels, height, width).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * height, columns * width).cpu()
