"""Condensed images: what is optimised, on which images, within which range, and that a stop changes
nothing."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import same

from augment import draw_operations
from data import ImageSet, load_data, to_float
from engine.runtime import Runtime
from engine.seeds import derive_seed
from models import NETWORKS
from models.condense import INITS, MATCHES, Condensed, Condensing, default_rate
from models.convnet import ConvNet
from utils import UsageError

CPU = Runtime(torch.device("cpu"))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(NETWORKS, "convnet_w32", partial(ConvNet, width=8))


@pytest.fixture(scope="module")
def digits():
    data = load_data("digits", "")
    return data, data.train[torch.where(data.train.labels < 3)[0]]


def make(digits, match="mean-last", ipc=2, train=None, **given) -> Condensed:
    settings = Condensing.of({"condense_match": match, "condense_batch": 8})
    torch.manual_seed(0)
    return Condensed(train or digits[1], ipc, replace(settings, **given), digits[0].info, 0, CPU)


def advance(condensed: Condensed, first: int, last: int) -> Condensed:
    for _ in zip(range(first, last), condensed.steps(first), strict=False):
        pass
    return condensed


@pytest.mark.parametrize("init", INITS)
def test_what_the_pixels_start_from(init, digits):
    found = make(digits, ipc=5, init=init).contents()
    assert torch.equal(found.labels, torch.arange(3).repeat_interleave(5))
    assert (found.images.dtype, found.images.shape) == (torch.uint8, (15, 1, 28, 28))
    known = {
        (image.numpy().tobytes(), int(label))
        for image, label in zip(digits[1].images, digits[1].labels, strict=True)
    }
    real = [
        (image.numpy().tobytes(), int(label)) in known
        for image, label in zip(found.images, found.labels, strict=True)
    ]
    assert all(real) if init == "real" else not any(real)
    assert len(found.images.flatten(1).unique(dim=0)) == 15


def test_more_images_than_a_class_has_start_from_noise_alone(digits):
    with pytest.raises(
        UsageError,
        match="500 condensed images of class 0, which has 151 real ones to start from: expected fewer",
    ):
        make(digits, ipc=500)
    assert make(digits, ipc=500, init="noise").pixels.shape == (3, 500, 1, 28, 28)


@pytest.mark.parametrize("match", MATCHES)
def test_one_image_of_a_class_is_condensed_and_one_real_image_is_no_distribution(match, digits):
    condensed = make(digits, match, ipc=1, init="noise", batch=16)
    losses = [step["loss_condense"].item() for _, step in zip(range(40), condensed.steps(), strict=False)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    if match == "grad":
        assert torch.isfinite(advance(make(digits, match, batch=1), 0, 2).pixels).all()
    else:
        _, train = digits
        of_zero, others = torch.where(train.labels == 0)[0], torch.where(train.labels > 0)[0]
        with pytest.raises(
            UsageError, match=f"--condense-match {match}: class 0 has 1 training image, expected two or more"
        ):
            make(digits, match, train=train[torch.cat([of_zero[:1], others])])
        with pytest.raises(
            UsageError, match=f"--condense-batch 1: --condense-match {match} needs two or more real images"
        ):
            Condensing.of({"condense_match": match, "condense_batch": 1})


@pytest.mark.parametrize("match", MATCHES)
def test_the_distance_falls_and_every_image_moves(match, digits):
    condensed = make(digits, match, init="noise", batch=16)
    before = condensed.pixels.detach().clone()
    losses = [step["loss_condense"].item() for _, step in zip(range(40), condensed.steps(), strict=False)]
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert ((condensed.pixels - before).abs().flatten(2).amax(2) > 0.01).all()


def test_what_is_matched_are_the_images_that_a_lossy_codec_leaves(digits):
    """A codec that halves the number of grey levels, against pixels that are on these levels already."""
    halved = lambda images: images // 128 * 128  # noqa: E731
    plain, coded, rounded = make(digits), make(digits), make(digits)
    coded.lossy = halved
    with torch.no_grad():
        rounded.pixels.copy_(to_float(halved(rounded.contents().images)).view_as(rounded.pixels))
    before = coded.pixels.detach().clone()
    losses = []
    for condensed in (plain, coded, rounded):
        torch.manual_seed(1)
        losses.append(next(condensed.steps())["loss_condense"].item())
    assert losses[1] == pytest.approx(losses[2], rel=1e-5)
    assert abs(losses[1] - losses[0]) > 0.01 * losses[0]
    assert (coded.pixels - before).abs().max() > 0  # the gradient passes the codec


@pytest.mark.parametrize("match", MATCHES)
def test_pixels_are_clipped_to_the_range_of_images(match, digits):
    condensed = advance(make(digits, match, lr=1000 * default_rate(match)), 0, 2)
    assert condensed.pixels.min() == -1
    assert condensed.pixels.max() == 1


@pytest.mark.parametrize("match", MATCHES)
def test_the_images_of_a_class_depend_on_its_real_images_alone(match, digits):
    """With one class a step, to the bit; the unit of a distance is a mean over the classes of a step."""
    _, train = digits
    noise = torch.randint(
        256, train.images.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    others = ImageSet(
        torch.where((train.labels == 1)[:, None, None, None], train.images, noise), train.labels
    )
    found = []
    for images in (train, others):
        condensed = make(digits, match, train=images)
        condensed.matching = replace(condensed.matching, classes=1)
        found.append(advance(condensed, 0, 6).pixels.detach())
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][0], found[1][0])


@pytest.mark.parametrize("match", MATCHES)
def test_a_step_moves_the_images_drawn_for_it_alone_and_all_get_their_turn(match, digits):
    condensed, turns = make(digits, match, ipc=6, images=2, lr=0.01), torch.zeros(3, 6, dtype=torch.long)
    condensed.optim.param_groups[0]["momentum"] = 0  # it moves an image for some steps after its own
    for number in range(30):
        before = condensed.pixels.detach().clone()
        advance(condensed, number, number + 1)
        moved = (condensed.pixels != before).flatten(2).any(2)  # (3, 6)
        assert moved.sum(1).tolist() == [2, 2, 2]
        turns += moved
    assert turns.min() >= 3


def test_as_many_images_in_a_step_as_there_are_change_nothing(digits):
    plain, limited = (advance(make(digits, ipc=4, images=images), 0, 3) for images in (None, 7))
    assert torch.equal(plain.pixels, limited.pixels)


def test_the_lossy_codec_sees_the_images_of_the_step_alone(digits):
    condensed, seen = make(digits, ipc=6, images=2), []
    condensed.lossy = lambda images: seen.append(len(images)) or images
    advance(condensed, 0, 3)
    assert seen == [6, 6, 6]


def test_a_step_is_sgd_on_the_distance_times_the_number_of_images(digits):
    one, other = make(digits, ipc=4, lr=0.1), make(digits, ipc=4)
    groups = next(one.matching.batches(one.train, CPU.device, 0, "condense"))
    advance(one, 0, 1)
    other.pool.select(0, 1)
    torch.manual_seed(0)
    start = other.pixels.detach().clone().requires_grad_(True)
    real, y = other.train.batch(groups.flatten())
    rows = other.train.labels[groups[:, 0]]  # these classes are 0, 1 and 2, as are the rows
    operations = one.matching.choose_operations(
        torch.Generator().manual_seed(derive_seed(0, "condense operations", 0))
    )
    augment = draw_operations(operations, 1, 28, CPU.device)
    loss = other.matching.loss(
        other.pool.model, real, start[rows].flatten(0, 1), y, augment, CPU, num_classes=3
    )
    (grad,) = torch.autograd.grad(12 * loss, start)
    assert torch.allclose(one.pixels, (start - 0.1 * grad).clamp(-1, 1), atol=1e-6)


@pytest.mark.parametrize("images", [None, 1])
@pytest.mark.parametrize("match", MATCHES)
def test_read_back_it_goes_on_as_it_would_have(match, images, digits):
    through = advance(make(digits, match, images=images), 0, 5)
    other, half = make(digits, match, images=images), advance(make(digits, match, images=images), 0, 3)
    rng = torch.get_rng_state()
    other.load_state_dict(half.state_dict())
    torch.set_rng_state(rng)
    assert same(advance(other, 3, 5).state_dict(), through.state_dict())


def test_defaults_are_those_of_the_match():
    assert Condensing.of({}) == Condensing("mean", 1000, 5.0, 64, "convnet_w32", "real")
    given = {
        "condense_match": "grad",
        "condense_steps": 5,
        "condense_batch": 7,
        "condense_network": "resnet18",
        "condense_init": "noise",
    }
    given |= {"condense_images": 3}
    assert Condensing.of(given) == Condensing("grad", 5, 0.3, 7, "resnet18_w32", "noise", 3)
    with pytest.raises(UsageError, match="unknown network 'vgg'"):
        Condensing.of({"condense_network": "vgg"})


@pytest.mark.parametrize("network", ["mlp_w100", "resnet10"])
@pytest.mark.parametrize("match", MATCHES)
def test_every_kind_of_network_will_do(match, network, digits):
    before = make(digits, match, network=network)
    start = to_float(before.contents().images)
    assert not torch.equal(to_float(advance(before, 0, 2).contents().images), start)
