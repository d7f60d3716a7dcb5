"""Faults put in on purpose, each of which the emulated device must see.

tests/test_pretend_cuda.py runs them, in a process of their own.
"""

import itertools
import math

import pytest
import torch

import gen_condense
import models.gan
from data import load_data
from engine import streams
from engine.graphs import Graphed
from engine.optim import make_sgd, set_rate
from engine.runtime import make_runtime
from engine.streams import Lanes, Stopwatch
from gen_condense import train_gan
from models import build_gan
from models.gan import GAN
from pretend_cuda.report import REPORT, Fault
from utils import FailedRun

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def fresh():
    """A report of its own for each test, which begins on the default stream."""
    REPORT.clear()
    with torch.cuda.stream(torch.cuda.default_stream()):
        yield


def stage_1(steps: int = 5, graphs: bool = True, ema: float = 0.0, ready=lambda gan: None) -> list[float]:
    """Sums of the losses of some steps; three are run as they are, then a graph is recorded and replayed."""
    torch.manual_seed(0)
    config = {"num_classes": 10, "channels": 1, "image_size": 28, "width": 4, "z_dim": 100}
    place = make_runtime("cuda", False, False, graphs)
    gan = GAN(*(place.place(player) for player in build_gan(config)), 1e-3, ema)
    ready(gan)
    loop = train_gan(
        gan,
        load_data("digits", "").train.to(place.device),
        epochs=1,
        batch_size=8,
        gp_weight=10,
        seed=0,
        runtime=place,
    )
    return [sum(at.losses.values()).item() for at in itertools.islice(loop, steps)]


def test_without_a_fault_nothing_is_seen():
    assert stage_1(ema=0.9) == pytest.approx(stage_1(graphs=False, ema=0.9), rel=1e-3)
    assert not {"faults", "races", "CPU scalars in CUDA operations"} & REPORT.counts.keys()


def test_a_value_read_in_a_step(monkeypatch):
    step = models.gan.discriminator_step
    monkeypatch.setattr(
        gen_condense, "discriminator_step", lambda *args: step(*args) * (1 if step(*args).item() else 0)
    )
    with pytest.raises(FailedRun, match=r"item\(\) while a graph is recorded"):
        stage_1()


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_a_generator_of_the_cpu(monkeypatch, graphs):
    rng, labels = torch.Generator(), models.gan.uniform_labels
    monkeypatch.setattr(
        models.gan,
        "uniform_labels",
        lambda *args: labels(*args) + torch.randint(1, (8,), device=CUDA, generator=rng),
    )
    with pytest.raises(Fault, match="Expected a 'cuda' device type for generator but found 'cpu'"):
        stage_1(graphs=graphs)


def test_a_generator_of_the_device_for_a_tensor_on_the_cpu():
    with pytest.raises(Fault, match="Expected a 'cpu' device type for generator but found 'cuda'"):
        torch.rand(3, generator=torch.Generator("cuda"))


def test_a_generator_that_was_not_registered():
    rng = torch.Generator("cuda").manual_seed(0)
    for registered in (rng, None):
        step = make_runtime("cuda", False, False, True).graphed(
            lambda x: {"sum": x + torch.rand(3, device=CUDA, generator=rng)}, registered
        )
        for _ in range(3):
            step(torch.ones(3, device=CUDA))
        if registered is None:
            with pytest.raises(FailedRun, match="unregistered generator"):
                step(torch.ones(3, device=CUDA))
        else:
            step(torch.ones(3, device=CUDA))


def test_an_output_that_is_not_cloned(monkeypatch):
    call = Graphed.__call__

    def not_cloned(self, x):
        losses = call(self, x)
        return next(
            (outputs for (buffer,), outputs, _ in self.recorded.values() if buffer.shape == x.shape), losses
        )

    monkeypatch.setattr(Graphed, "__call__", not_cloned)
    step = make_runtime("cuda", False, False, True).graphed(lambda x: {"sum": x.sum()})
    kept = [step(torch.ones(size, device=CUDA))["sum"] for size in (3, 3, 3, 3, 4, 4, 4, 4)]
    assert any(math.isnan(value.item()) for value in kept)


def test_a_rate_on_the_host():
    for on_device in (True, False):
        weight = torch.nn.Parameter(torch.zeros(1, device=CUDA))
        optim = (
            make_sgd([weight], 1.0)
            if on_device
            else torch.optim.SGD([weight], lr=1.0, momentum=0.9, weight_decay=5e-4, fused=True)
        )

        def update(x, weight=weight, optim=optim):
            optim.zero_grad()
            (weight * x).sum().backward()
            optim.step()
            return {}

        step = make_runtime("cuda", False, False, True).graphed(update)
        for _ in range(5):
            step(torch.ones(1, device=CUDA))
        before = weight.item()
        set_rate(optim, 0.0)
        step(torch.ones(1, device=CUDA))
        assert (weight.item() == before) == on_device


def test_an_averages_count_on_the_host():
    stage_1(ema=0.9, ready=lambda gan: setattr(gan, "ema_steps", torch.zeros(())))
    assert REPORT.total("CPU scalars in CUDA operations", "a constant of the recorded graph") > 0


def test_no_warm_up(monkeypatch):
    expected = stage_1(graphs=False)
    monkeypatch.setattr(Graphed, "WARMUP", 0)
    assert stage_1() != pytest.approx(expected, rel=1e-3)


def test_lanes_without_their_first_wait(monkeypatch):
    def work() -> int:
        x = torch.randn(8, 8, device=CUDA)
        lanes = Lanes(2, CUDA)
        for i in range(2):
            with lanes[i]:
                (x @ x).sum()
        lanes.join()
        torch.cuda.synchronize()
        return REPORT.total("races")

    assert work() == 0
    monkeypatch.setattr(
        Lanes, "__init__", lambda self, n, device: setattr(self, "streams", streams._side_streams(n, device))
    )
    assert work() > 0


@pytest.mark.parametrize("joined", [True, False])
def test_lanes_without_their_join(joined):
    x, lanes, sums = torch.randn(8, 8, device=CUDA), Lanes(2, CUDA), []
    for i in range(2):
        with lanes[i]:
            sums.append((x @ x).sum())
    if joined:
        lanes.join()
    total = sums[0] + sums[1]
    assert (REPORT.total("races") == 0) == joined
    torch.cuda.synchronize()
    del total


def test_a_recording_on_the_default_stream():
    with (
        pytest.raises(Fault, match="non-default stream"),
        torch.cuda.graph(torch.cuda.CUDAGraph(), None, torch.cuda.current_stream()),
    ):
        pass


def test_a_lap_that_is_read_before_its_end(monkeypatch):
    monkeypatch.setattr(torch.cuda.Stream, "synchronize", lambda self: None)
    watch = Stopwatch(CUDA)
    with watch:
        torch.ones(3, device=CUDA).sum()
    with pytest.raises(Fault, match="cudaErrorNotReady"):
        watch.seconds()


def test_tensors_of_two_devices():
    with pytest.raises(Fault, match="at least two devices"):
        torch.ones(3, device=CUDA) + torch.ones(3)
    with pytest.raises(Fault, match="indices should be either on cpu"):
        torch.ones(3)[torch.arange(2, device=CUDA)]
    with pytest.raises(TypeError, match="to numpy"):
        torch.ones(3, device=CUDA).numpy()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x[0] > 0),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x[torch.arange(2)],
        lambda x: torch.arange(2).to("cuda"),
        lambda x: torch.arange(2).to("cuda", non_blocking=True),
        lambda x: torch.tensor(0.1, device="cuda"),
        lambda x: torch.bincount(x.long()),
        lambda x: torch.cuda.current_stream().synchronize(),
    ],
)
def test_a_wait_of_the_host(wait):
    x = torch.ones(3, device=CUDA)
    (
        x + 1,
        x[:2],
        x.sum(),
        torch.randperm(5, device=CUDA)[:2],
        torch.arange(2).pin_memory().to("cuda", non_blocking=True),
    )
    assert REPORT.total("host waits") == 0
    wait(x)
    assert REPORT.total("host waits") > 0
