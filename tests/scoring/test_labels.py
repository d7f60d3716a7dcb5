"""Labels of distilled sets: classes, probabilities, and what --label-kind names."""

import pytest
import torch
import torch.nn.functional as F

from data import DATASETS
from scoring.distilled import read_distilled
from utils import UsageError

INFO = DATASETS["digits"].info
IMAGES = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.arange(10).repeat_interleave(2)
SOFT = torch.rand(20, 10, generator=torch.Generator().manual_seed(1)).mul(3).softmax(1)


def read(path, labels, kind=None):
    torch.save((IMAGES, labels), path)
    return read_distilled(path, INFO, label_kind=kind)[0]


@pytest.mark.parametrize(
    "dtype",
    [torch.int64, torch.uint8, torch.bool, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn],
)
def test_one_hot_labels_are_hard_and_cost_no_bytes(dtype, tmp_path):
    found = read(tmp_path / "x.pt", F.one_hot(LABELS, 10).to(dtype))
    assert torch.equal(found.labels, LABELS)
    assert (found.soft, found.num_bytes) == (False, IMAGES.numel())


@pytest.mark.parametrize(
    "labels",
    [LABELS.float(), LABELS.double(), LABELS[:, None], LABELS.int(), LABELS.to(torch.uint64)],
    ids=lambda labels: f"{labels.dtype} {labels.dim()}",
)
def test_hard_labels_of_any_type_cost_no_bytes(labels, tmp_path):
    found = read(tmp_path / "x.pt", labels)
    assert torch.equal(found.labels, LABELS)
    assert (found.soft, found.num_bytes) == (False, IMAGES.numel())


def test_logits_are_named_and_turned_to_probabilities(tmp_path):
    logits = SOFT.log() + 2
    with pytest.raises(
        UsageError,
        match=r"expected probabilities, not logits; name what they are: --label-kind hard soft logits "
        r"centred",
    ):
        read(tmp_path / "x.pt", logits - 5)
    found = read(tmp_path / "x.pt", logits, "logits")
    assert torch.allclose(found.labels, SOFT, atol=1e-6)
    assert (found.soft, found.num_bytes) == (True, IMAGES.numel() + 4 * 200)


def test_centred_labels_are_named(tmp_path):
    centred = F.one_hot(LABELS, 10) - 0.1
    with pytest.raises(UsageError, match="--label-kind"):
        read(tmp_path / "x.pt", centred)
    found = read(tmp_path / "x.pt", centred, "centred")
    assert torch.equal(found.labels, LABELS)
    learned = centred.clone()
    learned[0, :3] = torch.tensor([0.5, -0.3, 0.1])  # + 0.1 and clipped: 0.6, 0, 0.2
    found = read(tmp_path / "x.pt", learned, "centred")
    assert found.labels[0].tolist() == pytest.approx([0.75, 0, 0.25, *[0] * 7])


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        (
            torch.ones(20, 10).long(),
            None,
            r"labels \(20, 10\) of int64 that are not one-hot, expected one 1 in each row and else 0",
        ),
        (SOFT, "hard", r"labels \(20, 10\) of float32 that are not one-hot"),
        (LABELS, "logits", r"--label-kind logits: found labels \(20,\) in .*x.pt, expected \(20, 10\)"),
        (
            torch.full((20, 10), -1.0),
            "centred",
            "--label-kind centred: .*x.pt holds a label without a positive value",
        ),
        (torch.full((20, 10), float("nan")), "logits", "not finite"),
        (LABELS.to(torch.complex64), None, "complex"),
        (torch.empty(20, device="meta"), None, "quantized or empty tensor"),
        (
            LABELS.index_fill(0, torch.tensor([3]), 2**62),
            None,
            "found labels 0 to 4611686018427387904, expected 0 to 9",
        ),
        (LABELS.float().index_fill(0, torch.tensor([3]), float("nan")), None, "no whole numbers"),
    ],
)
def test_labels_that_do_not_fit_their_kind(labels, kind, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        read(tmp_path / "x.pt", labels, kind)
