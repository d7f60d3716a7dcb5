import math

import pytest
import torch

import augment
from augment import COMPOSITIONS, OPERATIONS, choose_operations, draw_cutmix, draw_operations
from utils import UsageError

CPU = torch.device("cpu")


def ramp(batch: int = 2, channels: int = 3, side: int = 8) -> torch.Tensor:
    return (
        torch.arange(batch * channels * side * side, dtype=torch.float32).view(batch, channels, side, side)
        / 100
    )


def test_flip_mirrors_only_where_asked():
    x = ramp()
    out = augment.flip(x, torch.tensor([True, False]).view(2, 1, 1, 1))
    assert torch.equal(out[0], x[0].flip(2))
    assert torch.equal(out[1], x[1])


def test_colour_steps_by_hand():
    x = torch.tensor([1.0, 3.0, 5.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2).clone()
    x[:, :, 0, 0] += 4
    factor = torch.full((1, 1, 1, 1), 2.0)
    assert torch.equal(augment.brightness(x, torch.full((1, 1, 1, 1), 0.25)), x + 0.25)
    # about the mean over channels: 3 at most pixels, 7 at the first
    assert torch.allclose(augment.saturation(x, factor)[0, :, 1, 1], torch.tensor([-1.0, 3.0, 7.0]))
    assert torch.allclose(augment.saturation(x, factor)[0, :, 0, 0], torch.tensor([3.0, 7.0, 11.0]))
    # about the mean of the whole image: 3 + 4 / 4 = 4
    assert torch.allclose(augment.contrast(x, factor)[0, :, 1, 1], torch.tensor([-2.0, 2.0, 6.0]))


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, -3), (-1, 1), (7, 7)])
def test_crop_translates_and_fills_with_zero(shift):
    x = ramp(1) + 1
    out = augment.crop(x, torch.tensor([shift]))
    padded = torch.nn.functional.pad(x, (8, 8, 8, 8))
    assert torch.equal(out, padded[:, :, 8 + shift[0] : 16 + shift[0], 8 + shift[1] : 16 + shift[1]])


def test_crop_takes_each_image_by_its_own_shift():
    x = ramp(2)
    out = augment.crop(x, torch.tensor([[1, 0], [0, 2]]))
    assert torch.equal(out[0, :, :-1], x[0, :, 1:])
    assert torch.equal(out[1, :, :, :-2], x[1, :, :, 2:])


def test_cutout_zeroes_half_the_side():
    x = torch.ones(2, 1, 8, 8)
    out = augment.cutout(x, torch.tensor([[4, 4], [0, 8]]))
    assert out[0].sum() == 64 - 16
    assert out[0, 0, 2:6, 2:6].sum() == 0
    assert out[1].sum() == 64 - 4  # three quarters of the hole lie outside


def test_rotation_by_a_right_angle_and_zero_outside_of_a_shrunk_image():
    x = ramp(1, 1)
    theta = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    assert torch.allclose(augment.affine(x, theta), torch.rot90(x, 1, (2, 3)), atol=1e-4)
    shrunk = augment.affine(torch.ones(1, 1, 8, 8), torch.tensor([[[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]]))
    assert shrunk[0, 0, 0, 0] == 0
    assert shrunk[0, 0, 4, 4] == 1


@pytest.mark.parametrize("composition", COMPOSITIONS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_differentiable_and_keeps_the_shape(operation, composition):
    torch.manual_seed(0)
    x = torch.randn(4, 3, 32, 32, requires_grad=True)
    out = draw_operations(choose_operations(operation, composition), 4, 32, CPU)(x)
    out.square().sum().backward()
    assert out.shape == x.shape
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "strategy", ["color", "crop", "cutout", "scale", "rotate", "flip", "color_crop_cutout"]
)
def test_siamese_draw_treats_every_image_alike_and_any_batch(strategy):
    torch.manual_seed(3)
    image = torch.randn(1, 3, 32, 32)
    transform = draw_operations(choose_operations(strategy, "dim"), 1, 32, CPU)
    out = transform(image.expand(5, -1, -1, -1))
    assert all(torch.equal(out[0], other) for other in out[1:])
    assert torch.equal(transform(image)[0], out[0])  # real and generated images share the draw


@pytest.mark.parametrize("strategy", ["color", "crop", "cutout", "scale", "rotate", "flip"])
def test_a_draw_per_image_differs_between_images(strategy):
    torch.manual_seed(0)
    out = draw_operations(choose_operations(strategy, "dim"), 16, 32, CPU)(
        torch.randn(1, 3, 32, 32).expand(16, -1, -1, -1)
    )
    assert any(not torch.equal(out[0], other) for other in out[1:])


def operations_run(monkeypatch, strategy: str, composition: str) -> tuple[str, ...]:
    run = []
    monkeypatch.setattr(augment, "_draw_operation", lambda name, *args: run.append(name) or (torch.clone, ()))
    draw_operations(choose_operations(strategy, composition), 1, 32, CPU)
    return tuple(run)


def test_composition_dim_runs_one_geometric_operation_and_all_the_others(monkeypatch):
    seen = {operations_run(monkeypatch, "color_crop_cutout_flip_scale_rotate", "dim") for _ in range(60)}
    assert seen == {("flip", "color", g, "cutout") for g in ("crop", "scale", "rotate")}
    assert operations_run(monkeypatch, "color_crop", "dim") == ("color", "crop")


def test_composition_dc_runs_one_operation(monkeypatch):
    seen = {operations_run(monkeypatch, "color_crop_cutout_flip_scale_rotate", "dc") for _ in range(200)}
    assert seen == {(name,) for name in OPERATIONS}


def test_ranges_of_the_draws():
    torch.manual_seed(0)
    n = 4000
    shift = draw_operations(choose_operations("crop", "dim"), n, 32, CPU)(
        torch.arange(1.0, 1025).view(1, 1, 32, 32).expand(n, -1, -1, -1)
    )
    rows = (shift[:, 0, 16, 16] - 1) // 32 - 16
    assert (rows.min(), rows.max()) == (-4, 4)  # 12.5 % of 32
    gray = torch.full((n, 1, 32, 32), 1.0)
    level = draw_operations(choose_operations("color", "dim"), n, 32, CPU)(gray)[:, 0, 0, 0] - 1
    assert -0.5 <= level.min() < -0.49
    assert 0.49 < level.max() <= 0.5


def test_none_is_the_identity_and_unknown_names_are_refused():
    x = ramp()
    assert draw_operations(choose_operations("none", "dim"), 1, 8, CPU)(x) is x
    with pytest.raises(UsageError, match="unknown operation 'blur'"):
        draw_operations(choose_operations("color_blur", "dim"), 1, 8, CPU)


def test_cutmix_mixes_the_share_it_names():
    torch.manual_seed(0)
    moved = 0
    for _ in range(20):
        mix, partner, share = draw_cutmix(6, 16, CPU)
        assert sorted(partner.tolist()) == list(range(6))
        moved += (partner != torch.arange(6)).sum().item()
        images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 16, 16)
        out = mix(images)
        for i in range(6):
            if partner[i] != i:
                assert math.isclose((out[i] == i).float().mean(), share, abs_tol=1e-6)
                assert set(out[i].unique().tolist()) <= {float(i), float(partner[i])}
        assert 0 <= share <= 1
    assert moved > 60  # of 120: each image mostly gets another one
