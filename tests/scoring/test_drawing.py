"""Fixed sets whose latents are optimised by matching."""

import json

import pytest
import torch
from conftest import run, validate_flags

import validate
from data import ImageSet, load_data
from engine.runtime import Runtime
from losses import energy_distance, pooled
from models import build_classifier, read_gan
from models.deploy import Latents
from scoring import drawing
from scoring.drawing import MatchedSets, matched_set
from scoring.sources import draw_fixed
from utils import UsageError

CPU = Runtime(torch.device("cpu"))


@pytest.fixture(scope="module")
def generator(trained):
    return read_gan(trained / "match" / "last.pth").generator().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", "")


def classifier(info):
    torch.manual_seed(3)
    return build_classifier("convnet_w32", info).eval().requires_grad_(False)


def test_latents_come_each_once_before_any_comes_again(generator):
    latents = Latents(generator, 3, 0, CPU.device, 10)
    y = torch.tensor([4, 1, 4, 4, 1, 1])
    images = latents.sample(y)
    for label in (1, 4):
        own = generator(latents.values[label], torch.full((3,), label))
        found = images[y == label]
        distances = torch.cdist(own.flatten(1), found.flatten(1))
        assert torch.equal(distances.argmin(1).sort().values, torch.arange(3))
        assert distances.min(1).values.max() < 1e-3
    twice = latents.sample(torch.full((6,), 2))
    assert len(twice.flatten(1).unique(dim=0)) == 3
    images.sum().backward()
    touched = latents.values.grad.abs().sum((1, 2)) > 0
    assert touched.nonzero().flatten().tolist() == [1, 4]
    assert (
        latents.values.grad[:, :, :10].abs().sum() == 0
    )  # the class overwrites these, so they are not stored
    assert latents.stored().nbytes == 2 * 10 * 3 * (generator.z_dim - 10)
    assert [name for name, _ in latents.named_parameters()] == ["values"]


def test_matched_latents_are_nearer_to_the_classes_than_random_ones(generator, digits):
    before = [tensor.clone() for tensor in generator.state_dict().values()]
    state = torch.get_rng_state()
    found = matched_set(generator, digits.train, digits.info, 8, 12, [], 0, CPU)
    again = matched_set(generator, digits.train, digits.info, 8, 12, [], 0, CPU)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(before, generator.state_dict().values(), strict=True))
    images, labels, size = found
    assert torch.equal(images, again[0])
    assert (images.shape, images.dtype, labels.tolist()) == (
        (80, 1, 28, 28),
        torch.uint8,
        sorted([*range(10)] * 8),
    )
    assert size == 2 * 80 * 90
    model = classifier(digits.info)

    def features(images, labels):
        x = ImageSet(images, labels).batch(torch.arange(len(labels)))[0]
        return [pooled(layer).unflatten(0, (10, -1)) for layer in model.logits_and_features(x)[1]]

    real = [
        torch.cat([digits.train.images[digits.train.labels == k][:100] for k in range(10)]),
        torch.arange(10).repeat_interleave(100),
    ]
    distance = {}
    for name, drawn in (("matched", (images, labels)), ("random", draw_fixed(generator, 8, 0, CPU))):
        distance[name] = sum(
            energy_distance(a, b).item() for a, b in zip(features(*real), features(*drawn), strict=True)
        )
    assert distance["matched"] < distance["random"]


def test_one_image_a_class_is_matched_by_its_mean(generator, digits):
    images, labels, size = matched_set(generator, digits.train, digits.info, 1, 2, [], 0, CPU)
    assert (len(images), labels.tolist(), size) == (10, [*range(10)], 2 * 10 * 90)


def test_the_first_rank_draws_alone_while_the_others_wait_once(generator, digits, tmp_path, monkeypatch):
    working, waits = [], []

    def gathered(self, value):
        assert not working, "a wait inside of the first rank's work, which the others do not take part in"
        waits.append(value)
        return [value]

    def on_main(self, work, real=Runtime.on_main):
        working.append(work)
        work()
        working.pop()
        real(self, lambda: None)

    def update(self, optimizer):
        assert self.world_size == 1, "gradients of ranks that do not draw"
        optimizer.step()

    for name, replaced in (("gather", gathered), ("on_main", on_main), ("update", update)):
        monkeypatch.setattr(Runtime, name, replaced)
    ranks = Runtime(torch.device("cpu"), world_size=2)

    def teachers(*args):
        ranks.on_main(lambda: None)  # as a classifier is trained
        return [classifier(digits.info)]

    monkeypatch.setattr(drawing, "make_teachers", teachers)
    sets = MatchedSets(2, digits, "abc", tmp_path, 0, 0, ranks)
    images, labels, _ = sets.images(generator, {}, 3)
    assert (len(images), len(labels)) == (30, 30)
    waited = len(waits)
    assert sets.images(generator, {}, 3)[0] is images  # kept: no further wait, as inside of an export
    assert len(waits) == waited


def test_rows_say_how_their_set_was_drawn_and_what_it_takes(tmp_path, trained):
    weight = str(trained / "match" / "last.pth")
    flags = validate_flags(
        tmp_path, "--pretrain-weight", weight, "--source", "generator", "--budget", "fixed", "stream"
    )
    flags += ["--draw", "matched", "--draw-steps", "2", "--export", str(tmp_path / "export")]
    rows = {row["budget"]: row for row in run(validate, flags)}
    assert rows["fixed"]["num_bytes"] == rows["stream"]["num_bytes"] + 2 * 30 * 90
    assert rows["fixed"]["drawn"].startswith("matched, 2 steps, ")
    assert rows["stream"]["drawn"] == "exported"
    (kept,) = (tmp_path / "test" / "drawn").glob("*.safetensors")
    stamp = kept.stat().st_mtime_ns
    again = {row["budget"]: row for row in run(validate, flags)}
    assert kept.stat().st_mtime_ns == stamp
    assert json.dumps(again) == json.dumps(rows)
    exported = [
        "--data",
        "digits",
        "--source",
        "file",
        "--file",
        str(tmp_path / "export" / "ipc3.pt"),
        "--tag",
        "file",
    ]
    scored = run(validate, validate_flags(tmp_path, *exported))
    assert scored[0]["accs"] == pytest.approx(rows["fixed"]["accs"])


def test_a_filter_that_the_latents_have_not_seen_is_refused(tmp_path, trained):
    flags = [
        "--pretrain-weight",
        str(trained / "match" / "last.pth"),
        "--budget",
        "fixed",
        "--draw",
        "matched",
    ]
    with pytest.raises(UsageError, match="expected no --filter"):
        validate.main.__wrapped__(
            validate.parse_args(validate_flags(tmp_path, *flags, "--filter", "0.5", "--teacher", "x"))
        )
