"""What a learner keeps: the sample is uniform, the bytes are the bytes."""

import copy
import io

import numpy as np
import pytest
import torch
from conftest import same
from PIL import Image

from data import DATASETS, load_data, to_uint8
from models import build_gan
from replay.buffer import Buffer
from replay.condensing import CondensedBuffer
from replay.memory import GeneratorMemory, Memory, generator_bytes, widest
from scoring.storage import BYTES, CODECS, LOSSY, decode_images, encode_images, make_codec, num_bytes
from utils import UsageError

CPU = torch.device("cpu")
INFO = DATASETS["digits"].info
CONFIG = {"gan": "dim", "num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 20}


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", "").train


def numbered(n: int) -> torch.Tensor:
    """Images of which number i is filled with i."""
    return torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 28, 28).contiguous()


def test_reservoir_keeps_every_image_with_the_same_probability():
    counts = torch.zeros(50)
    images, labels = numbered(50), torch.zeros(50, dtype=torch.long)
    trials = 600
    for seed in range(trials):
        buffer = Buffer(INFO, CPU, max_images=10, seed=seed)
        for part in torch.arange(50).split(7):
            buffer.offer(images[part], labels[part])
        assert len(buffer) == 10
        assert len(set(buffer.images[:, 0, 0, 0].tolist())) == 10
        counts[buffer.images[:, 0, 0, 0].long()] += 1
    expected, spread = trials / 5, (trials * 0.2 * 0.8) ** 0.5
    assert (counts - expected).abs().max() < 4.5 * spread
    assert (
        (counts - expected) ** 2 / spread**2
    ).mean() < 1.7  # as spread as chance would have it, and no more
    assert ((counts - expected) ** 2 / spread**2).mean() > 0.5


def test_balanced_reservoir_gives_each_class_its_share(digits):
    buffer = Buffer(INFO, CPU, max_images=60, balanced=True)
    first = torch.where(digits.labels < 2)[0]
    buffer.offer(digits.images[first], digits.labels[first])
    assert torch.bincount(buffer.labels, minlength=10).tolist() == [30, 30] + [0] * 8
    kept = {label: buffer.images[buffer.labels == label] for label in range(2)}
    rest = torch.where((digits.labels >= 2) & (digits.labels < 6))[0]
    buffer.offer(digits.images[rest], digits.labels[rest])
    assert torch.bincount(buffer.labels, minlength=10).tolist() == [10] * 6 + [0] * 4
    for label in range(2):  # those that stayed are of those that were there
        for image in buffer.images[buffer.labels == label]:
            assert (kept[label] == image).flatten(1).all(1).any()


@pytest.mark.parametrize("codec", CODECS)
def test_planned_shares_are_those_of_all_classes_and_no_image_leaves(digits, codec):
    """As many images of a class as a condenser would make; those that grew too large for its share are left
    out."""
    budget = 100_000
    buffer = Buffer(INFO, CPU, max_bytes=budget, balanced=True, planned=True, codec=codec)
    counts = []
    for label in range(10):
        images = digits[torch.where(digits.labels == label)[0]]
        room = buffer.room_for_class(images)
        before = buffer.images[: len(buffer)].clone()
        buffer.offer(images.images[:room], images.labels[:room])
        assert torch.equal(buffer.images[: len(before)], before)
        assert sum(buffer.num_bytes().values()) <= budget * (label + 1) / 10 + (
            buffer.codec.shared if codec in LOSSY else 0
        )
        counts.append(room)
    kept = torch.bincount(buffer.labels, minlength=10)
    assert (kept <= torch.tensor(counts)).all()
    assert (kept >= 0.8 * torch.tensor(counts)).all()
    assert sum(buffer.num_bytes().values()) <= budget
    if codec == "raw":
        assert kept.tolist() == counts == [10_000 // 785] * 10


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("codec", CODECS)
def test_real_images_fill_the_room_of_later_tasks_and_leave_it(digits, codec, images):
    """Condensed images are zeros here; whatever was offered before, they and the real ones fit together, and
    the last share is theirs."""
    budget = {"max_images": 100} if images else {"max_bytes": 60_000}
    core = Buffer(INFO, CPU, **budget, balanced=True, planned=True, codec=codec)
    buffer = CondensedBuffer(core, Buffer(INFO, CPU, **budget, codec=codec, seed=1))
    alone = Buffer(INFO, CPU, **budget, codec=codec, seed=1)
    for label in range(10):
        real = digits[torch.where(digits.labels == label)[0]]
        for part in (buffer, alone):
            part.offer(real.images, real.labels)
        if label == 0:
            assert torch.equal(buffer.images, alone.images)  # before the first task ends it is a reservoir
        room = 10 if images else core.room_for_class(real)
        buffer.keep(torch.zeros_like(real.images[:room]), real.labels[:room])
        condensed = (buffer.images == 0).flatten(1).all(1)
        assert (buffer.labels[condensed] <= label).all()
        assert int(condensed.sum()) == len(core) == len(buffer) - len(buffer.filler)
        if images:
            assert len(buffer) == 100
        else:
            assert sum(buffer.num_bytes().values()) <= 60_000
            assert codec != "raw" or sum(buffer.num_bytes().values()) > 60_000 - 785
        drawn = buffer.sample(len(buffer))
        assert torch.equal(drawn.y.sort()[0], buffer.labels.sort()[0])
        pixels = to_uint8(drawn.images).flatten(1)
        assert torch.equal(
            torch.bincount(drawn.y[(pixels == 0).all(1)], minlength=10),
            torch.bincount(core.labels, minlength=10),
        )
    restored = CondensedBuffer(
        Buffer(INFO, CPU, **budget, balanced=True, planned=True, codec=codec),
        Buffer(INFO, CPU, **budget, codec=codec),
    )
    restored.load_state_dict(buffer.state_dict())
    assert same(restored.state_dict(), buffer.state_dict())
    assert restored.num_bytes() == buffer.num_bytes()
    assert not images or len(buffer.filler) == 0


@pytest.mark.parametrize("codec", [name for name in CODECS if name != "raw"])
def test_decoded_images_lie_in_memory_as_others_do(digits, codec):
    """A grey image with other strides is taken for channels-last, whose convolutions sum in another order: a
    restart would show."""
    coder = make_codec(codec, 75, INFO)
    found = decode_images(coder, encode_images(coder, digits.images[:3]), INFO)
    assert found.stride() == torch.empty(found.shape).stride()


def test_a_balanced_buffer_needs_room_for_the_classes_that_come():
    assert Buffer(INFO, CPU, max_bytes=4 * 785, balanced=True, classes=[0, 1, 2, 3]).classes == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="expected room for one of each class, 7850 bytes or more"):
        Buffer(INFO, CPU, max_bytes=4 * 785, balanced=True)


def test_a_planned_buffer_has_room_for_each_class():
    assert Buffer(INFO, CPU, max_images=25, balanced=True, planned=True).room_for_class(None) == 2
    assert (
        Buffer(INFO, CPU, max_images=25, balanced=True, classes=[7, 2], planned=True).room_for_class(None)
        == 12
    )  # those of --tasks alone


def test_a_share_below_one_image_leaves_a_buffer_of_some_classes(digits):
    buffer = Buffer(INFO, CPU, max_images=5, balanced=True)
    for label in range(8):
        index = torch.where(digits.labels == label)[0]
        buffer.offer(digits.images[index], digits.labels[index])
        assert len(buffer) == 5
    assert torch.bincount(buffer.labels, minlength=10).max() == 1


@pytest.mark.parametrize(
    ("codec", "budget"), [("raw", 784), ("png", 60), ("webp", 20), ("jpeg", 600), ("jpeg-scan", 340)]
)
def test_a_budget_without_room_for_an_image_is_refused(codec, budget):
    with pytest.raises(
        UsageError, match=rf"{budget} bytes are left for images, expected room for one, \d+ bytes or more"
    ):
        Buffer(INFO, CPU, max_bytes=budget, codec=codec)
    with pytest.raises(UsageError, match="expected room for one of each class, 7850 bytes or more"):
        Buffer(INFO, CPU, max_bytes=7849, balanced=True)
    if codec in LOSSY:  # what is stored once is needed once
        shared, image = (
            make_codec(codec, 75, INFO).shared,
            encode_images(make_codec(codec, 75, INFO), torch.zeros(1, 1, 28, 28).byte())[0],
        )
        least = shared + 10 * (len(image) + 2 + 1)
        Buffer(INFO, CPU, max_bytes=least, balanced=True, codec=codec)
        with pytest.raises(UsageError, match=f"expected room for one of each class, {least} bytes or more"):
            Buffer(INFO, CPU, max_bytes=least - 1, balanced=True, codec=codec)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("balanced", [False, True])
def test_bytes_stay_within_the_budget_and_labels_with_their_images(digits, codec, balanced):
    budget = 80_000
    buffer = Buffer(INFO, CPU, max_bytes=budget, codec=codec, balanced=balanced)
    for index in torch.arange(1500).split(50):
        buffer.offer(digits.images[index], digits.labels[index])
        parts = buffer.num_bytes()
        assert sum(parts.values()) <= budget
    assert sum(parts.values()) > 0.9 * budget
    codes = sum(len(code) + 2 for code in buffer.codes) if codec != "raw" else buffer.images.numel()
    assert parts["images"] == codes + (buffer.codec.shared if codec in LOSSY else 0)
    assert parts["labels"] == len(buffer) == len(buffer.images)
    known = digits.images.float().flatten(1)
    nearest = torch.cdist(buffer.images.float().flatten(1), known).argmin(1)
    assert torch.equal(digits.labels[nearest], buffer.labels)
    if codec not in LOSSY:
        assert torch.equal(digits.images[nearest], buffer.images)


def test_compressed_images_are_learnt_from_as_they_are_stored(digits):
    jpeg, png = (Buffer(INFO, CPU, max_bytes=20_000, codec=codec) for codec in ("jpeg", "png"))
    for buffer in (jpeg, png):
        buffer.offer(digits.images[:30], digits.labels[:30])
    error = (jpeg.images.float() - png.images.float()).abs()
    assert 0 < error.mean() < 10
    assert len(jpeg.codes[0]) < 784


@pytest.mark.parametrize("quality", [1, 12, 75, 95])
@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_jpeg_shares_tables_and_headers(name, quality):
    """Decoded images are those of JPEG files of one piece, and scans are shorter by what the headers take."""
    info = DATASETS[name].info
    streams, scans = (make_codec(codec, quality, info) for codec in ("jpeg", "jpeg-scan"))
    shape = (info.image_size, info.image_size, 3)
    arrays = np.random.default_rng(0).integers(0, 255, (5, *shape), np.uint8)
    arrays = [
        *(arrays[..., 0] if info.channels == 1 else arrays),
        np.zeros(shape[: 2 if info.channels == 1 else 3], np.uint8),
    ]
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).save(file, "JPEG", quality=quality)
        whole, stream, scan = file.getvalue(), streams.encode(array), scans.encode(array)
        for codec, code in ((streams, stream), (scans, scan)):
            assert np.array_equal(codec.decode(code), np.asarray(Image.open(file)))
        assert len(scan) + scans.shared == len(whole)
        assert stream.endswith(scan + b"\xff\xd9")
        assert len(scan) < len(stream) - 40
    with pytest.raises(Exception, match=r"identify|broken|truncated|DQT"):
        make_codec("png", 75, info).decode(streams.encode(array))  # without the tables it is no picture


def test_logits_stay_with_their_images_and_cost_bytes(digits):
    buffer = Buffer(INFO, CPU, max_bytes=10 * (784 + 1 + 2 * 40), networks=2)
    logits = torch.arange(100.0)[:, None, None].expand(100, 2, 10)
    for index in torch.arange(100).split(9):
        buffer.offer(numbered(100)[index], torch.zeros(len(index), dtype=torch.long), logits[index])
    assert len(buffer) == 10
    assert torch.equal(buffer.logits[:, 1, 3], buffer.images[:, 0, 0, 0].float())
    assert buffer.num_bytes() == {"images": 7840, "labels": 10, "logits": 800}


def test_a_batch_is_without_repeats(digits):
    buffer = Buffer(INFO, CPU, max_images=20)
    buffer.offer(numbered(50), torch.zeros(50, dtype=torch.long))
    draw = buffer.sample(12)
    assert draw.images.min() >= -1
    assert len(draw.y) == len({image[0, 0, 0].item() for image in draw.images}) == 12
    assert len(buffer.sample(100).y) == 20


@pytest.mark.parametrize("codec", ["raw", "png"])
def test_a_buffer_read_back_goes_on_as_it_would_have(digits, codec):
    def fill(buffer, parts):
        for index in parts:
            buffer.offer(digits.images[index], digits.labels[index])
        return buffer

    new = lambda: Buffer(INFO, CPU, max_bytes=9000, codec=codec, balanced=True, seed=3)  # noqa: E731
    parts = torch.arange(300).split(25)
    through = fill(new(), parts)
    half, other = fill(new(), parts[:5]), new()
    other.load_state_dict(copy.deepcopy(half.state_dict()))
    assert same(fill(other, parts[5:]).state_dict(), through.state_dict())


def generators(layout: str, storage: str) -> GeneratorMemory:
    memory = GeneratorMemory(CONFIG, storage, layout, 10)
    for task in range(2):
        torch.manual_seed(task)
        memory.keep(build_gan(CONFIG)[0], [2 * task, 2 * task + 1])
    return memory


@pytest.mark.parametrize("storage", BYTES)
def test_one_generator_for_each_task_samples_its_own_classes(storage):
    memory = generators("per-task", storage)
    assert memory.num_bytes() == {"weights": 2 * generator_bytes(CONFIG, storage)}
    both, z = memory.build(), torch.Generator().manual_seed(0)
    y = torch.tensor([3, 0, 2, 1, 0])
    images = both.sample(y, z)
    z = torch.Generator().manual_seed(0)
    expected = both.generators[0].sample(y[[1, 3, 4]], z), both.generators[1].sample(y[[0, 2]], z)
    assert torch.equal(images[[1, 3, 4]], expected[0])
    assert torch.equal(images[[0, 2]], expected[1])


@pytest.mark.parametrize("gan", ["dim", "resnet"])
def test_generators_with_tables_of_their_own_classes_make_these_and_refuse_others(gan):
    config = CONFIG | {
        "gan": gan,
        "num_classes": 2,
        "z_dim": 5,
    }  # a code of two classes fits, of ten it would not
    memory = GeneratorMemory(config, "int8", "per-task", 10)
    for task, labels in enumerate(
        ([7, 2], [4])
    ):  # the second task has fewer classes than the tables have rows
        torch.manual_seed(task)
        generator, discriminator = memory.players(labels)
        assert len((discriminator.fc10 if gan == "dim" else discriminator.embed).weight) == 10
        memory.keep(generator, labels)
    assert memory.num_bytes() == {"weights": 2 * generator_bytes(config, "int8")}
    assert (
        generator_bytes(config, "int8") < generator_bytes(config | {"num_classes": 4}, "int8") or gan == "dim"
    )  # its code is in z
    other = GeneratorMemory(config, "int8", "per-task", 10)
    other.load_state_dict(memory.state_dict())
    both, bare = other.build(), [one.generator for one in other.build().generators]
    y, z = torch.tensor([2, 7, 4]), torch.randn(3, config["z_dim"])
    assert torch.equal(
        both.generators[0](z[:2], y[:2]), bare[0](z[:2], torch.tensor([1, 0]))
    )  # 7 and 2 have the rows 0 and 1
    assert torch.equal(both.generators[1](z[2:], y[2:]), bare[1](z[2:], torch.tensor([0])))
    assert len(both.sample(y)) == 3
    with pytest.raises(ValueError, match=r"labels \[4\]: expected the classes of this generator, \[7, 2\]"):
        both.generators[0].sample(torch.tensor([7, 4]))
    with pytest.raises(ValueError, match=r"labels \[0\]: expected the classes of this generator, \[4\]"):
        both.generators[1].sample(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"labels \[0, 9\]: none of the generators"):
        both.sample(torch.tensor([9, 2, 0]))


def test_a_carried_generator_takes_the_place_of_the_last():
    memory = generators("carried", "fp32")
    torch.manual_seed(1)
    last = build_gan(CONFIG)[0].fc1.weight
    state = torch.get_rng_state()
    assert torch.equal(memory.build().fc1.weight, last)
    assert torch.equal(torch.get_rng_state(), state)  # reading it back costs no random numbers
    assert memory.classes == [[2, 3]]
    assert memory.num_bytes() == {"weights": num_bytes(build_gan(CONFIG)[0])}


def test_the_widest_that_fits():
    def size(width):
        return generator_bytes(CONFIG | {"width": width}, "int8")

    for budget in (40_000, 600_000):
        width = widest(size, budget)
        assert size(width) <= budget < size(width + 1)
    with pytest.raises(
        UsageError, match=r"100 bytes are left for generators, expected at least the \d+ of width 1"
    ):
        widest(size, 100)


def test_a_memory_that_is_too_large_is_refused(digits):
    def new(max_bytes):
        return Memory(max_bytes, Buffer(INFO, CPU, max_images=20), generators("carried", "fp16"), copies=100)

    memory = new(None)
    memory.buffer.offer(digits.images[:50], digits.labels[:50])
    total = memory.num_bytes()["total"]
    assert total == 100 + 20 * 785 + generator_bytes(CONFIG, "fp16")
    state = memory.state_dict()
    new(total).load_state_dict(state)
    with pytest.raises(UsageError, match=f"the memory holds {total} bytes, expected at most the {total - 1}"):
        new(total - 1).load_state_dict(state)
