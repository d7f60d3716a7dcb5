import pytest
import torch
from inputs import bad_checkpoints, reference_checkpoint
from torch import nn

import models
from augment import draw_operations
from data import DATASETS, DataInfo
from engine.files import file_hash
from engine.seeds import seeded
from models import NETWORKS, Classifier, build_classifier, build_gan, load_generator, network_name, read_gan
from models.gan import GAN, sample_grid
from models.layers import _HalveOnCPU, average_pool
from utils import UsageError

INFOS = [
    *(row.info for row in DATASETS.values()),
    DataInfo("folder", 3, 28, 3, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3),
]


CONFIG = {"num_classes": 2, "channels": 1, "image_size": 28, "width": 2, "z_dim": 4}


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_on_every_set(name, info):
    classifier = build_classifier(name, info)
    images = torch.rand(2, info.channels, info.image_size, info.image_size) * 2 - 1
    logits, features = classifier.logits_and_features(images)
    assert logits.shape == (2, info.num_classes)
    assert all(f.dim() == 4 and len(f) == 2 for f in features)
    logits.square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in classifier.parameters())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("convnet", 320_010),
        ("resnet10", 1_228_970),
        ("resnet10_ap", 1_228_970),
        ("resnet18_w32", 2_797_610),
        ("resnet18_ap", 2_797_610),
        ("densenet", 1_000_618),
        ("resnet18_w64", 11_173_962),
    ],
)
def test_parameter_counts(name, count):
    assert num_parameters(build_classifier(name, DATASETS["cifar10"].info)) == count


@pytest.mark.parametrize(
    ("channels", "size", "counts"), [(3, 32, (3_559_363, 3_137_971)), (1, 28, (3_286_921, 2_969_803))]
)
def test_parameter_counts_of_the_gan(channels, size, counts):
    pair = build_gan(
        {"num_classes": 10, "channels": channels, "image_size": size, "width": 196, "z_dim": 100}
    )
    assert tuple(map(num_parameters, pair)) == counts


@pytest.mark.parametrize(("channels", "size", "classes"), [(3, 32, 10), (1, 28, 10), (1, 32, 2), (3, 28, 30)])
def test_generator_and_discriminator_fit_each_other(channels, size, classes):
    generator, discriminator = build_gan(
        {"num_classes": classes, "channels": channels, "image_size": size, "width": 5, "z_dim": 40}
    )
    y = torch.arange(4) % classes
    images = generator.sample(y)
    assert images.shape == (4, channels, size, size)
    assert images.abs().max() <= 1
    scores, logits = discriminator(images)
    assert (scores.shape, logits.shape) == ((4,), (4, classes))
    (scores.sum() + logits.sum()).backward()
    assert all(p.grad is not None for module in (generator, discriminator) for p in module.parameters())


def test_the_class_code_overwrites_the_first_entries_of_z():
    torch.manual_seed(0)
    generator, _ = build_gan({"num_classes": 3, "channels": 1, "image_size": 28, "width": 16, "z_dim": 8})
    generator.eval()
    z = torch.randn(3, 8)
    other = z.clone()
    other[:, :3] = 7.0
    y = torch.tensor([0, 1, 2])
    assert torch.equal(generator(z, y), generator(other, y))
    assert not torch.equal(generator(z, y), generator(z, y.flip(0)))
    with pytest.raises(UsageError, match="--z-dim 3: expected more than the 3 classes"):
        build_gan({"num_classes": 3, "channels": 1, "image_size": 28, "width": 4, "z_dim": 3})


def test_names():
    assert (
        network_name("resnet18") == "resnet18_w32"
    )  # DiM's commands mean the narrow one; what is stored says so
    with pytest.raises(
        UsageError, match=r"unknown network 'resnet19', expected one of convnet, .*resnet18_w64"
    ):
        build_classifier("resnet19", DATASETS["cifar10"].info)


def test_the_wrapper_normalises_before_it_augments():
    info = DataInfo("x", 2, 32, 3, ("a", "b", "c"), (0.25, 0.5), (0.5, 0.1))
    seen = []

    class Spy(nn.Module):
        def features(self, x):
            seen.append(x)
            return [x]

        def head(self, x):
            return x.flatten(1)

    pixels = torch.tensor([0.75, 0.4]).view(1, 2, 1, 1).expand(1, 2, 32, 32)  # in [0, 1]
    Classifier(Spy(), info)(pixels * 2 - 1, augment=lambda x: x + 1)
    assert torch.allclose(
        seen[0][0, :, 0, 0], torch.tensor([(0.75 - 0.25) / 0.5 + 1, (0.4 - 0.5) / 0.1 + 1]), atol=1e-5
    )


def test_the_augmentation_is_not_rounded_to_bf16():
    seen = []
    classifier = build_classifier("convnet_w32", DATASETS["digits"].info)
    images = torch.rand(2, 1, 28, 28) * 2 - 1
    transform = draw_operations(("rotate",), 1, 28, torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16):
        logits = classifier(images, lambda x: seen.append(transform(x)) or seen[0])
    normalised = (images - classifier.mean) / classifier.std
    assert torch.equal(seen[0], transform(normalised))
    assert logits.dtype == torch.float32
    assert classifier.network.convs[0](normalised).dtype == torch.float32  # outside of autocast


def test_resnet_ap_pools_where_the_other_strides():
    info = DATASETS["cifar10"].info
    plain, pooled = build_classifier("resnet10", info).network, build_classifier("resnet10_ap", info).network
    pooled.load_state_dict(plain.state_dict(), strict=False)
    strides = [m.stride for m in pooled.modules() if isinstance(m, nn.Conv2d)]
    assert set(strides) == {(1, 1)}
    assert sum(isinstance(m, nn.AvgPool2d) for m in pooled.modules()) > 0
    x = torch.randn(2, 3, 32, 32)
    assert [f.shape for f in plain.features(x)] == [f.shape for f in pooled.features(x)]
    assert not torch.allclose(plain.features(x)[-1], pooled.features(x)[-1])


@pytest.mark.parametrize("shape", [(3, 2, 8, 6), (2, 1, 7, 7), (1, 3, 2, 2)])
def test_average_pool_equals_torch_s_own(shape):
    x, grad = torch.randn(shape, requires_grad=True), torch.randn(*shape[:2], shape[2] // 2, shape[3] // 2)
    actual, expected = average_pool(x), nn.functional.avg_pool2d(x, 2)
    assert torch.allclose(actual, expected, atol=1e-6)
    for y in (actual, expected):
        assert (y.grad_fn.name() == "_HalveOnCPUBackward") == (y is actual and shape[3] % 2 == 0)
    assert torch.allclose(*(torch.autograd.grad(y, x, grad)[0] for y in (actual, expected)), atol=1e-6)
    for other in (x.double(), x.to(memory_format=torch.channels_last), x.bfloat16()):
        assert torch.equal(average_pool(other), nn.functional.avg_pool2d(other, 2))


def test_average_pool_is_differentiable_twice():
    x = torch.randn(2, 1, 4, 4, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradgradcheck(_HalveOnCPU.apply, x)
    assert torch.autograd.gradcheck(_HalveOnCPU.apply, x)


def test_moving_average_of_the_generator():
    gan = GAN(
        *build_gan({"num_classes": 2, "channels": 1, "image_size": 28, "width": 2, "z_dim": 4}),
        lr=1e-3,
        ema=0.75,
    )
    before = gan.generator.fc1.weight.detach().clone()
    with torch.no_grad():
        gan.generator.fc1.weight.add_(4.0)
        gan.generator.bn0.running_mean.add_(2.0)
    gan.update_ema()  # the first steps are kept less: decays min(0.75, 1/10), min(0.75, 2/11)
    assert torch.allclose(gan.deployed.fc1.weight, before + 0.9 * 4, atol=1e-6)
    gan.update_ema()
    assert torch.allclose(gan.deployed.fc1.weight, before + (1 - 0.1 * 2 / 11) * 4, atol=1e-6)
    gan.ema_steps.fill_(1000)
    gan.generator_ema.fc1.weight.copy_(before)
    gan.update_ema()
    assert torch.allclose(gan.deployed.fc1.weight, before + 0.25 * 4, atol=1e-6)
    assert torch.equal(gan.deployed.bn0.running_mean, gan.generator.bn0.running_mean)
    assert gan.deployed is gan.generator_ema


def test_pictures_leave_every_stream_of_random_numbers_alone(monkeypatch):
    generator, _ = build_gan(CONFIG)
    monkeypatch.setattr("torch.cuda.manual_seed_all", lambda seed: pytest.fail("seeds CUDA"))
    state = torch.get_rng_state()
    sample_grid(generator, seed=0)
    with seeded(torch.device("cpu"), 1):
        inside = torch.get_rng_state()
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(inside, state)


def test_pictures_have_a_column_for_each_class_and_the_same_z_every_time():
    generator, _ = build_gan({"num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 20})
    grid = sample_grid(generator, seed=0)
    torch.manual_seed(1)
    assert torch.equal(grid, sample_grid(generator, seed=0))
    assert grid.shape == (1, 10 * 30, 10 * 30)
    assert generator.training
    few, _ = build_gan({"num_classes": 3, "channels": 3, "image_size": 32, "width": 4, "z_dim": 20})
    assert sample_grid(few, seed=0, rows=2).shape == (3, 2 * 34, 3 * 34)


# checkpoints


def test_reference_state_dicts_have_the_papers_keys(tmp_path):
    reference_checkpoint(tmp_path / "g.pth")
    state = torch.load(tmp_path / "g.pth", weights_only=True)
    layers = {key.split(".")[0] for key in state["generator"]}
    assert layers == {"fc1", *(f"bn{i}" for i in range(8)), *(f"conv{i}" for i in range(1, 9))}
    layers = {key.split(".")[0] for key in state["discriminator"]}
    assert layers == {"fc1", "fc10", *(f"conv{i}" for i in range(1, 9)), *(f"ln{i}" for i in range(1, 9))}


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28)])
def test_load_generator_reads_reference_checkpoints(tmp_path, channels, size):
    written = reference_checkpoint(tmp_path / "g.pth", channels, size).eval()
    read = load_generator(tmp_path / "g.pth")
    assert (read.channels, read.image_size, read.width, read.z_dim, read.num_classes) == (
        channels,
        size,
        6,
        100,
        10,
    )
    z, y = torch.randn(3, 100), torch.arange(3)
    assert torch.equal(read(z, y), written(z, y))
    assert not read.training


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_checkpoints_of_wrapped_networks_load(prefix, tmp_path):
    written = reference_checkpoint(tmp_path / "g.pth", 1, 28).eval()
    state = torch.load(tmp_path / "g.pth", weights_only=True)
    for name in ("generator", "discriminator"):
        state[name] = {prefix + key: tensor for key, tensor in state[name].items()}
    torch.save(state, tmp_path / "wrapped.pth")
    loaded = load_generator(tmp_path / "wrapped.pth")
    assert all(
        torch.equal(a, b)
        for a, b in zip(loaded.state_dict().values(), written.state_dict().values(), strict=True)
    )
    read_gan(tmp_path / "wrapped.pth").players()
    del state["generator"][prefix + "conv8.weight"]
    torch.save(state, tmp_path / "wrapped.pth")
    with pytest.raises(UsageError, match=r"'conv8.weight' is missing"):
        read_gan(tmp_path / "wrapped.pth")


@pytest.mark.parametrize(
    ("sizes", "actual", "sets"),
    [
        ((1, 28, 10), "1 x 28 x 28 with 10 classes", "mnist, fashion, digits, folder"),
        ((3, 32, 7), "3 x 32 x 32 with 7 classes", "folder"),
        ((3, 28, 7), "3 x 28 x 28 with 7 classes", "folder"),
    ],
)
def test_a_checkpoint_without_a_set_is_not_taken_for_one_of_other_sizes(sizes, actual, sets, tmp_path):
    channels, size, classes = sizes
    reference_checkpoint(tmp_path / "g.pth", channels, size, classes=classes)
    checkpoint = read_gan(tmp_path / "g.pth")
    with pytest.raises(
        UsageError,
        match=f"g.pth: names no data set, found a generator of {actual}; name its set with --data: {sets}$",
    ):
        checkpoint.data_name(None)
    assert checkpoint.data_name("mnist") == "mnist"
    reference_checkpoint(tmp_path / "c.pth")
    assert read_gan(tmp_path / "c.pth").data_name(None) == "cifar10"


def test_load_generator_needs_nothing_but_the_file(trained, tmp_path):
    copy = tmp_path / "somewhere.pth"
    copy.write_bytes((trained / "match" / "last.pth").read_bytes())
    generator = load_generator(copy)
    assert generator.sample(torch.arange(10)).shape == (10, 1, 28, 28)
    assert read_gan(copy).info == DATASETS["digits"].info


def test_the_moving_average_is_what_is_deployed(tmp_path):
    gan = GAN(*build_gan(CONFIG), 1e-3, ema=0.5)
    with torch.no_grad():
        gan.generator_ema.fc1.weight.fill_(3.0)
    info = DataInfo("digits", 1, 28, 2, ("0", "1"), (0.5,), (0.5,))
    torch.save(
        {"config": CONFIG, "info": info.to_dict(), "val_size": 0, **gan.state_dict()}, tmp_path / "g.pth"
    )
    assert load_generator(tmp_path / "g.pth").fc1.weight.unique().tolist() == [3.0]
    assert read_gan(tmp_path / "g.pth").players()[0].fc1.weight.unique().tolist() == [3.0]


def test_bad_checkpoints_are_refused_in_one_line_and_never_executed(trained, tmp_path):
    good = trained / "gan" / "last.pth"
    before = file_hash(good)
    for name, message in bad_checkpoints(tmp_path, good).items():
        with pytest.raises(UsageError, match=message) as error:
            load_generator(tmp_path / name)
        assert "\n" not in str(error.value)
        assert name in str(error.value)
    assert not (tmp_path / "executed").exists()
    assert file_hash(good) == before


def test_classifier_statistics_are_not_stored():
    assert not any(
        name in models.build_classifier("convnet", INFOS[0]).state_dict() for name in ("mean", "std")
    )
