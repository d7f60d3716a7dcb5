"""The residual pair, and what both pairs are trained with: augmentation, rates, averages, statistics."""

import copy
import os
import signal

import pytest
import torch
from conftest import gan_flags, match_flags, run, same
from torch import nn
from torch.nn.utils import parametrize

import gen_condense
import pool_match
from data import DATASETS, ImageSet
from engine.runtime import Runtime
from engine.seeds import seeded
from gen_condense import train_gan
from models import GANS, build_gan, load_generator, read_gan
from models.gan import GAN, differentiable_augment, discriminator_step, estimate_statistics, rate_factor
from models.resnet_gan import ConditionalBatchNorm2d, ResNetGenerator, conv_pool, upsample_conv
from utils import UsageError

CPU = Runtime(torch.device("cpu"))
CONFIG = {"gan": "resnet", "num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 20}


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def make_gan(lr: float = 1e-3, ema: float = 0.0, lr_d: float | None = None, **sizes) -> GAN:
    torch.manual_seed(0)
    return GAN(*build_gan(CONFIG | sizes), lr, ema, lr_d)


@pytest.fixture
def train() -> ImageSet:
    draw = torch.Generator().manual_seed(0)
    return ImageSet(
        torch.randint(256, (64, 1, 28, 28), dtype=torch.uint8, generator=draw), torch.arange(64) % 10
    )


# the networks


@pytest.mark.parametrize("info", [row.info for row in DATASETS.values()], ids=lambda info: info.name)
def test_at_its_default_width_it_is_no_larger_than_dim_s(info):
    sizes = {"num_classes": info.num_classes, "channels": info.channels, "image_size": info.image_size}
    z_dim = max(100, 2 * info.num_classes)
    dim, resnet = (
        build_gan({"gan": name, **sizes, "width": GANS[name].width, "z_dim": z_dim})[0]
        for name in ("dim", "resnet")
    )
    assert num_parameters(resnet) <= num_parameters(dim)


@pytest.mark.parametrize(("channels", "size", "count"), [(3, 32, 3_257_411), (1, 28, 3_253_377)])
def test_parameter_counts(channels, size, count):
    assert num_parameters(ResNetGenerator(10, channels, size)) == count


@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 28, 10), (1, 32, 2), (3, 28, 30)])
def test_the_pair_fits(channels, size, classes):
    generator, discriminator = build_gan(
        CONFIG | {"num_classes": classes, "channels": channels, "image_size": size, "z_dim": 40}
    )
    y = torch.arange(6) % classes
    images = generator.sample(y)
    assert images.shape == (6, channels, size, size)
    assert images.abs().max() <= 1
    scores, logits = discriminator(images, y)
    assert scores.shape == (6,)
    assert logits is None
    scores.square().sum().backward()
    assert all(
        p.grad is not None and torch.isfinite(p.grad).all()
        for module in (generator, discriminator)
        for p in module.parameters()
    )


def test_the_class_matters_to_both_players():
    generator, discriminator = build_gan(CONFIG)
    generator.eval(), discriminator.eval()
    z, y = torch.randn(4, 20), torch.zeros(4, dtype=torch.long)
    assert not torch.allclose(generator(z, y), generator(z, y + 1))
    with pytest.MonkeyPatch.context() as patch:  # at both places
        patch.setattr("models.resnet_gan.F.one_hot", lambda y, n: torch.zeros(len(y), n))
        assert not torch.allclose(generator(z, y), generator(z, y + 1))
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, ConditionalBatchNorm2d):
                nn.init.ones_(module.gain), nn.init.zeros_(module.bias)
    assert not torch.allclose(generator(z, y), generator(z, y + 1))
    images = torch.rand(4, 1, 28, 28)
    assert not torch.allclose(discriminator(images, y)[0], discriminator(images, y + 1)[0])


def test_conditional_batch_norm_by_hand():
    norm = ConditionalBatchNorm2d(1, 2)
    with torch.no_grad():
        norm.gain.copy_(torch.tensor([[1.0], [3.0]]))
        norm.bias.copy_(torch.tensor([[0.0], [5.0]]))
    x = torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1)  # mean 0, variance 1
    with pytest.raises(UsageError, match="--z-dim 10: expected more than the 10 classes"):
        build_gan(CONFIG | {"z_dim": 10})
    assert torch.allclose(norm(x, torch.tensor([0, 1])).flatten(), torch.tensor([-1.0, 8.0]), atol=1e-4)


def test_every_conv_of_the_discriminator_comes_to_a_largest_singular_value_of_one():
    discriminator = build_gan(CONFIG)[1].train()
    images, y = torch.rand(4, 1, 28, 28), torch.arange(4)
    for _ in range(60):
        discriminator(images, y)
    layers = [m for m in discriminator.modules() if parametrize.is_parametrized(m, "weight")]
    assert len(layers) == 8 + 2  # of four blocks, and two shortcuts
    for layer in layers:
        assert torch.linalg.matrix_norm(layer.weight.detach().flatten(1), 2).item() == pytest.approx(
            1, abs=0.05
        )


def test_weights_are_normalised_in_float32_once_a_pass():
    discriminator = build_gan(CONFIG)[1].train()
    layer = discriminator.blocks[1].conv1.parametrizations.weight
    weight, u, v = layer.original.detach().flatten(1), layer[0]._u.clone(), layer[0]._v.clone()
    with torch.autocast("cpu", torch.bfloat16):
        scores, _ = discriminator(torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
    u = nn.functional.normalize(weight @ v, dim=0)  # one power iteration
    v = nn.functional.normalize(weight.T @ u, dim=0)
    assert torch.allclose(layer[0]._u, u, atol=1e-6)
    assert torch.allclose(layer[0]._v, v, atol=1e-6)
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("side", [8, 7])
def test_resampling_within_a_conv_is_that_before_or_after_it(side):
    conv, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(2, 2, 4, 4, dtype=torch.double)
    assert torch.allclose(upsample_conv(x, conv, side), conv(nn.functional.interpolate(x, size=side)))
    x = torch.randn(2, 2, 14, 14, dtype=torch.double)
    assert torch.allclose(conv_pool(x, conv), nn.functional.avg_pool2d(conv(x), 2))


# training


def test_its_losses_are_the_hinge_game_s(train, monkeypatch):
    gan = make_gan()
    scores = torch.cat([torch.full((8,), 0.5), torch.full((8,), -3.0)])
    monkeypatch.setattr(
        gan.discriminator, "forward", lambda x, y: (scores + 0 * gan.discriminator.fc1.bias, None)
    )
    monkeypatch.setattr("models.gan.gradient_penalty", None)  # never called
    real, y = train.batch(torch.arange(8))
    assert discriminator_step(gan, real, y, 10.0, CPU).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "extra",
    [
        [],
        [
            "--diffaug",
            "color_crop_cutout",
            "--ema",
            "0.9",
            "--restat",
            "2",
            "--lr-decay",
            "linear",
            "--lr-d",
            "1e-3",
        ],
    ],
)
def test_both_stages_take_it_and_resume_to_the_bit(extra, tmp_path):
    flags = gan_flags(tmp_path / "a", "--gan", "resnet", *extra)
    whole = run(gen_condense, flags)
    parts = gan_flags(tmp_path / "b", "--gan", "resnet", *extra)
    stop_after(gen_condense, parts, 7)
    assert same(state(run(gen_condense, parts).best_path), state(whole.best_path))
    assert read_gan(whole.best_path).config["gan"] == "resnet"
    pool = ["--match", "dist", "--pool-size", "2"] if extra else []
    matched = run(pool_match, match_flags(tmp_path / "a", whole.best_path, *extra, *pool))
    stop_after(pool_match, match_flags(tmp_path / "b", whole.best_path, *extra, *pool), 7)
    again = run(pool_match, match_flags(tmp_path / "b", whole.best_path, *extra, *pool))
    assert same(state(again.best_path), state(matched.best_path))
    images = load_generator(matched.best_path).sample(torch.arange(10))
    assert images.shape == (10, 1, 28, 28)
    assert torch.isfinite(images).all()


def state(path) -> dict:
    return {name: part for name, part in torch.load(path, weights_only=True).items() if name != "seconds"}


def stop_after(script, flags: list[str], steps: int) -> None:
    """Run until `steps` discriminator steps are done, then stop as by SIGTERM."""
    calls = []

    def counted(*args):
        calls.append(1)
        if len(calls) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return discriminator_step(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, "discriminator_step", counted)
        with pytest.raises(SystemExit) as stop:
            run(script, flags)
    assert stop.value.code == 143


def test_it_learns_the_mean_of_each_class():
    """Classes of one grey each: in 300 steps the generated ones come near them, in four seeds within 0.16."""
    greys = torch.tensor([20, 120, 230], dtype=torch.uint8)
    labels = torch.arange(240) % 3
    train = ImageSet(greys[labels][:, None, None, None].expand(-1, 1, 28, 28).contiguous(), labels)
    gan = make_gan(num_classes=3, width=8)
    for _ in train_gan(gan, train, epochs=30, batch_size=24, gp_weight=0, seed=0, runtime=CPU):
        pass
    generator = gan.deployed.eval()
    with torch.no_grad():
        means = [generator.sample(torch.full((50,), label)).mean().item() for label in range(3)]
    expected = (greys.float() / 127.5 - 1).tolist()
    assert means == pytest.approx(expected, abs=0.35)


def test_several_discriminator_steps_take_real_images_of_their_own(train, monkeypatch):
    gan, seen = make_gan(), []
    monkeypatch.setattr(
        gen_condense, "discriminator_step", lambda gan, real, *rest: seen.append(real) or torch.zeros(())
    )
    steps = list(train_gan(gan, train, epochs=1, batch_size=8, gp_weight=0, seed=0, runtime=CPU, d_steps=3))
    assert [at.step for at in steps] == [1, 2]
    assert len(seen) == 6
    assert len(torch.cat(seen).flatten(1).unique(dim=0)) == 48
    with pytest.raises(UsageError, match="--batch-size 8 with --d-steps 10: larger than"):
        next(train_gan(gan, train, epochs=1, batch_size=8, gp_weight=0, seed=0, runtime=CPU, d_steps=10))


def test_rates_fall_to_zero(train):
    assert [rate_factor("linear", done, 4) for done in range(4)] == [1, 0.75, 0.5, 0.25]
    assert rate_factor("none", 3, 4) == 1
    gan, rates = make_gan(lr=1e-3, lr_d=4e-3), []
    for _ in train_gan(
        gan, train, epochs=2, batch_size=16, gp_weight=0, seed=0, runtime=CPU, lr_decay="linear"
    ):
        rates.append([optim.param_groups[0]["lr"] for optim in (gan.optim_g, gan.optim_d)])
    assert [g for g, _ in rates] == pytest.approx([1e-3 * (1 - i / 8) for i in range(8)])
    assert [d for _, d in rates] == pytest.approx([4e-3 * (1 - i / 8) for i in range(8)])


def test_a_decay_holds_the_number_of_epochs(tmp_path, capsys):
    flags = gan_flags(tmp_path, "--lr-decay", "linear")
    run(gen_condense, [*flags, "--epochs", "1"])
    with pytest.raises(SystemExit):
        run(gen_condense, [*flags, "--epochs", "2"])
    assert "decay over --epochs 1, found the decay over --epochs 2" in capsys.readouterr().err


@pytest.mark.parametrize("gan", GANS)
def test_the_augmentation_reaches_both_sides_and_all_steps(gan, train, monkeypatch):
    seen = []

    def spy(images, operations):
        seen.append((len(images), operations, images.requires_grad))
        return differentiable_augment(images, operations)

    monkeypatch.setattr(gen_condense, "differentiable_augment", spy)
    monkeypatch.setattr("models.gan.differentiable_augment", spy)
    pair = make_gan(gan=gan, z_dim=20)
    next(
        train_gan(
            pair, train, epochs=1, batch_size=8, gp_weight=10, seed=0, runtime=CPU, diffaug="color_cutout"
        )
    )
    assert seen == [(8, ("color", "cutout"), True), (16, ("color", "cutout"), False)]


def test_the_augmentation_draws_for_each_image_and_lets_gradients_through():
    images = torch.zeros(6, 1, 32, 32, requires_grad=True)
    torch.manual_seed(0)
    changed = differentiable_augment(images, ("color",))
    assert len(changed.detach().flatten(1).unique(dim=0)) == 6
    changed.sum().backward()
    assert images.grad.abs().sum() > 0
    assert differentiable_augment(images, ()) is images


def test_statistics_of_an_average_are_estimated_anew():
    gan = make_gan(ema=0.5)
    generator, norm = gan.deployed, gan.deployed.bn
    with torch.no_grad():
        norm.running_mean.fill_(100.0)
    inputs = []
    hook = norm.register_forward_hook(
        lambda module, args, out: inputs.append(args[0].detach().transpose(0, 1).flatten(1))
    )
    before = torch.get_rng_state()
    estimate_statistics(generator, 5, 16, 0, CPU)
    hook.remove()
    assert torch.equal(torch.get_rng_state(), before)
    assert norm.momentum == 0.1
    assert torch.allclose(norm.running_mean, torch.stack([x.mean(1) for x in inputs]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([x.var(1) for x in inputs]).mean(0), atol=1e-4)
    again = copy.deepcopy(generator)
    with seeded(CPU.device, "other"):
        estimate_statistics(again, 5, 16, 0, CPU)
    assert torch.equal(again.bn.running_mean, norm.running_mean)
