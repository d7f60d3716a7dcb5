"""The three stages on CUDA: `pytest -m gpu`."""

import pytest
import torch
from conftest import gan_flags, match_flags, run, validate_flags

import gen_condense
import pool_match
import validate
from data import DATASETS, ImageSet
from models import NETWORKS, load_generator
from pool_match import Pool
from runtime import make_runtime

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("precision", [[], ["--no-amp", "--no-channels-last"]], ids=["amp", "float32"])
def test_three_stages(tmp_path, precision):
    cuda = ["--device", "cuda", *precision]
    found = run(gen_condense, gan_flags(tmp_path, *cuda))
    assert all(torch.isfinite(torch.tensor(list(line.values()))).all() for line in found.lines)
    found = run(pool_match, match_flags(tmp_path, found.best_path, *cuda, "--pool", "convnet_w32", "resnet10"))
    rows = run(validate, validate_flags(tmp_path, "--pretrain-weight", str(found.best_path), *cuda))
    assert [row["n"] for row in rows] == [2, 2, 2]
    assert load_generator(found.best_path).sample(torch.arange(3)).device.type == "cpu"


def test_a_cpu_run_continues_on_cuda_and_back(tmp_path):
    for i, device in enumerate(("cpu", "cuda", "cpu"), start=1):
        found = run(gen_condense, gan_flags(tmp_path, "--device", device, "--epochs", str(i)))
        assert len(found.lines) == i


def test_resume_inside_an_epoch_goes_on_from_the_saved_step(tmp_path, monkeypatch):
    step, calls = gen_condense.discriminator_step, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(*args)

    flags = gan_flags(tmp_path, "--device", "cuda", "--save-interval", "2")
    with monkeypatch.context() as patch:
        patch.setattr(gen_condense, "discriminator_step", stop)
        with pytest.raises(SystemExit):
            run(gen_condense, flags)
    assert len(run(gen_condense, flags).lines) == 2


@pytest.mark.parametrize("name", NETWORKS)
def test_a_pool_update_of_every_network(name):
    runtime = make_runtime("cuda", None, None)
    pool = Pool([name], DATASETS["cifar10"].info, 0.01, "color_crop", 0, runtime)
    pool.draw(0)
    images = ImageSet(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8)).to(runtime.device)
    pool.train_step(images, torch.arange(8, device=runtime.device))
    assert all(torch.isfinite(p).all() for p in pool.model.parameters())


def test_cuda_and_cpu_agree_on_a_step(tmp_path):
    losses = {}
    for device in ("cpu", "cuda"):
        flags = gan_flags(tmp_path / device, "--device", device, "--no-amp", "--epochs", "1")
        losses[device] = run(gen_condense, flags).lines[0]["loss_d"]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=0.05)
