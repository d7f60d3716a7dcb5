"""Bad input: one clear line on stderr, exit code 2, nothing written."""

import errno
import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SCRIPTS, gan_flags, run
from inputs import bad_checkpoints, reference_checkpoint

from data import DATASETS
from engine.files import locked

FLAGS = {
    "gen_condense": ["--data", "digits"],
    "pool_match": ["--weight", "{gan}"],
    "validate": ["--pretrain-weight", "{gan}"],
    "continual": ["er", "--data", "digits", "--buffer-size", "20"],
}
DIM = ["dim", "--width", "4", "--memory-bytes"]
CONDENSED = ["condensed", "--buffer-size"]
EVERYWHERE = ("gen_condense", "pool_match", "validate")
TRAINING = EVERYWHERE[:2]
STAGES = (*EVERYWHERE, "continual")


def refused(script: str, extra: list[str], results: Path, capsys, gan: Path) -> str:
    """Run `script` with `extra` flags; the line it refuses them with, after checking that it wrote
    nothing."""
    own = FLAGS[script]
    if extra and not extra[0].startswith("-"):  # a method of continual.py, with flags of its own
        own, extra = [extra[0], "--data", "digits"], extra[1:]
    flags = [*own, "--tag", "bad", "--results-dir", str(results), *extra]
    before = sorted(results.rglob("*"))
    with pytest.raises(SystemExit) as error:
        run(SCRIPTS[script], [flag.format(gan=gan) for flag in flags])
    out, err = capsys.readouterr()
    assert error.value.code == 2
    assert "Traceback" not in err
    lines = [line for line in (out + err).splitlines() if not line.startswith("warning")]
    assert len(lines) == 1
    assert sorted(results.rglob("*")) == before
    return lines[0]


NEEDS = {method: ["--buffer-size", "90"] for method in ("er", "der++", "gdumb", "condensed", "cls-er")}
FOREIGN = {  # flags of other methods
    "finetune": ("--memory-bytes 9000", "--buffer-size 9000", "--codec jpeg", "--replay-batch-size 8"),
    "joint": ("--memory-bytes 9000", "--buffer-size 9000"),
    "unlimited": ("--memory-bytes 9000", "--buffer-size 9000", "--codec jpeg"),
    "er": ("--width 8", "--match-steps 0", "--replay-images 5", "--distill-weight 0.5", "--z-dim 50",
           "--alpha 1",
           "--retrain", "--replay-loss er", "--fill-real", "--condense-steps 5", "--retrain-steps 4"),
    "gdumb": ("--rehearse-steps 4", "--replay-batch-size 8"),
    "condensed": ("--track online", "--alpha 1"),
    "dgr": ("--replay-loss er", "--buffer-size 5"),
    "dim": ("--buffer-size 5", "--codec png", "--track online", "--condense-match dist", "--retrain"),
}  # fmt: skip


CASES = [
    *((s, ["--data", "imagenet"], "argument --data: invalid choice: 'imagenet'") for s in EVERYWHERE),
    *((s, ["--eval-model", "vgg"], "--eval-model vgg: unknown network 'vgg'") for s in EVERYWHERE),
    *((s, ["--budget", "free"], "argument --budget: invalid choice") for s in EVERYWHERE),
    *((s, ["--recipe", "x"], "argument --recipe: invalid choice") for s in EVERYWHERE),
    *((s, [flag, bad], f"argument {flag}: found {bad}, expected a whole number >= 1")
      for s in EVERYWHERE for flag in ("--ipc", "--repeats", "--epochs-eval") for bad in ("0", "-3")),
    *((s, ["--batch-size", bad], f"argument --batch-size: found {bad}, expected a whole number >= 2")
      for s in TRAINING for bad in ("0", "-1", "1")),
    *(("validate", ["--batch-size", bad], f"argument --batch-size: found {bad}, expected a whole number >= "
    "1") for bad in ("0", "-1")),
    *((s, ["--epochs", "9" * 400], "argument --epochs: found 9") for s in TRAINING),
    *((s, ["--epochs", bad], "argument --epochs: found")
      for s in TRAINING for bad in ("0", "-1", "x", "1.5")),
    *(("gen_condense", ["--width", bad], "argument --width: found") for bad in ("0", "-8")),
    *((s, ["--lr", bad], f"argument --lr: found {bad}, expected a number > 0")
      for s in EVERYWHERE for bad in ("0", "-1", "nan", "inf")),
    *((s, ["--gp-weight", bad], "argument --gp-weight: found") for s in TRAINING for bad in ("-1", "nan")),
    *((s, ["--ema", bad], "argument --ema: found") for s in TRAINING for bad in ("-0.1", "1", "nan")),
    ("gen_condense", ["--gan", "x"], "argument --gan: invalid choice: 'x'"),
    ("gen_condense", ["--d-steps", "0"], "argument --d-steps: found 0, expected a whole number >= 1"),
    ("gen_condense", ["--batch-size", "200", "--d-steps", "9"], "--batch-size 200 with --d-steps 9: larger "
    "than the training set"),
    *((s, ["--lr-d", "0"], "argument --lr-d: found 0, expected a number > 0") for s in TRAINING),
    *((s, ["--lr-decay", "x"], "argument --lr-decay: invalid choice: 'x'") for s in TRAINING),
    *((s, ["--diffaug", "blur"], "--diffaug blur: unknown operation 'blur'") for s in TRAINING),
    *((s, ["--restat", "-1"], "argument --restat: found -1, expected a whole number >= 0") for s in TRAINING),
    ("pool_match", ["--pool-size", "0"], "argument --pool-size: found 0, expected a whole number >= 1"),
    ("pool_match", ["--match", "dist", "--metric", "l1"], "--metric l1: --match dist takes none"),
    *((s, ["--mix-p", bad], "argument --mix-p: found") for s in EVERYWHERE for bad in ("-2", "1.1", "nan")),
    *((s, ["--seed", "-1"], "argument --seed: found -1") for s in EVERYWHERE),
    *((s, ["--val-size", "-1"], "argument --val-size: found -1") for s in EVERYWHERE),
    *((s, ["--val-size", "1500"], "--val-size 1500: asks for 150 of the") for s in EVERYWHERE),
    *((s, ["--val-size", "3"], "at least one image for each of the 10 classes") for s in EVERYWHERE),
    *((s, ["--batch-size", "1501"], "--batch-size 1501: larger than the training set, which has 1500 images")
      for s in TRAINING),
    *((s, ["--image-size", "32"], "--image-size 32: digits has 28") for s in EVERYWHERE),
    *((s, ["--image-size", "30"], "argument --image-size: invalid choice: 30") for s in EVERYWHERE),
    *((s, ["--device", "tpu"], "argument --device: found 'tpu', expected auto, cpu, cuda or cuda:N")
      for s in EVERYWHERE),
    *((s, ["--tag", ""], "--tag ''") for s in EVERYWHERE),
    *((s, ["--tag", tag], f"--tag {tag!r}") for s in STAGES for tag in ("../out", ".", "./")),
    *((s, ["--seed", str(2**64)], f"argument --seed: found {2**64}, expected a whole number >= 0 and <= "
    f"{2**64 - 1}") for s in STAGES),
    ("continual", ["gdumb", "--buffer-size", "5"], "--buffer-size 5: expected room for one "
    "image of each of the 10 classes"),
    *((s, ["--epoch", "3"], "unrecognized arguments: --epoch 3") for s in TRAINING),
    ("gen_condense", ["--z-dim", "10"], "--z-dim 10: expected more than the 10 classes"),
    ("pool_match", ["--match", "moments"], "argument --match: invalid choice: 'moments'"),
    ("pool_match", ["--metric", "l7"], "argument --metric: invalid choice: 'l7'"),
    ("pool_match", ["--pool", "convnet", "alexnet"], "--pool alexnet: unknown network 'alexnet'"),
    ("pool_match", ["--teachers", "vgg"], "--teachers vgg: unknown network 'vgg'"),
    ("pool_match", ["--pool-lr", "nan"], "argument --pool-lr: found nan"),
    ("pool_match", ["--pool-steps", "-1"], "argument --pool-steps: found -1"),
    ("pool_match", ["--match-weight", "nan"], "argument --match-weight: found nan"),
    ("pool_match", ["--match-strategy", "color_blur"], "--match-strategy color_blur: unknown operation "
    "'blur'"),
    ("pool_match", ["--pool-strategy", "zoom"], "--pool-strategy zoom: unknown operation 'zoom'"),
    ("validate", ["--dsa-strategy", "zoom"], "--dsa-strategy zoom: unknown operation 'zoom'"),
    ("validate", ["--dsa-composition", "zoom"], "unrecognized arguments: --dsa-composition zoom"),
    ("validate", ["--source", "fake"], "argument --source: invalid choice: 'fake'"),
    ("validate", ["--ipc", "200"], "--ipc 200: class 8, the smallest of digits, has 146 training images for "
    "random-real"),
    *(("continual", ["er", *more], message)
      for more, message in (
          ([], "er: error: one of the arguments --memory-bytes --buffer-size is required"),
          (["--memory-bytes", "9000", "--buffer-size", "5"],
           "argument --buffer-size: not allowed with argument --memory-bytes"))),
    ("continual", ["condensed"], "one of the arguments --memory-bytes --buffer-size is required"),
    *(("continual", [method, *NEEDS.get(method, ()), *flag.split()], f"unrecognized arguments: {flag}")
      for method, flags in FOREIGN.items() for flag in flags),
    ("continual", ["condensed", "--buffer-size", "9", "--replay-loss", "er", "--retrain"],
     "--replay-loss er: --retrain learns from memory alone"),
    ("continual", ["condensed", "--buffer-size", "9", "--rehearse-steps", "4", "--retrain"],
     "--rehearse-steps 4: --retrain learns from memory alone"),
    ("continual", ["condensed", "--buffer-size", "90", "--retrain-steps", "4"],
     "--retrain-steps 4: expected it beside --retrain"),
    ("continual", ["dim", "--match-steps", "2", "--match-batch", "150"],
     "--match-batch 150: a step matches 150 images of a class, found 148 training images of 4"),
    ("continual", ["dim", "--match-steps", "2", "--match-batch", "1"],
     "argument --match-batch: found 1, expected a whole number >= 2"),
    ("continual", ["dim", "--match", "logit"], "unrecognized arguments: --match logit"),
    ("continual", ["dim", "--recipe-match", "energy"], "unrecognized arguments: --recipe-match energy"),
    ("continual", ["dim", "--gan-steps", "0"],
     "--gan-steps 0: without a GAN the generator needs --match-steps, found 0"),
    ("continual", ["ewc"], "argument METHOD: invalid choice: 'ewc'"),
    ("continual", ["finetune", "--method", "dim"], "the method comes first: continual.py er"),
    ("continual", ["--pool", "vgg"], "--pool vgg: unknown network 'vgg'"),
    ("continual", ["--dsa-strategy", "zoom"], "--dsa-strategy zoom: unknown operation 'zoom'"),
    ("continual", ["--num-tasks", "11"], "--num-tasks 11: expected at most the 10 classes"),
    ("continual", ["--num-tasks", "0"], "argument --num-tasks: found 0, expected a whole number >= 1"),
    ("continual", ["--batch-size", "400"], "--batch-size 400: larger than task 1, which has 3"),
    ("continual", [*DIM, "900000", "--gan-batch-size", "400"], "--gan-batch-size 400: larger than task 1, "
    "which has 3"),
    ("continual", ["--track", "online", "--epochs", "2"], "--epochs 2: --track online sees each image once, "
    "expected 1 or --track offline"),
    ("continual", [*DIM, "9000"], "--memory-bytes 9000: --width 4: its generators take"),
    ("continual", ["dim", "--memory-bytes", "900"], "--memory-bytes 900: 900 bytes are left for "
    "generators, expected at least"),
    ("continual", ["er", "--memory-bytes", "700"], "--memory-bytes 700: 700 bytes are left for "
    "images"),
    ("continual", ["cls-er", "--memory-bytes", "9000"], "--memory-bytes 9000: the averaged "
    "copies of cls-er take"),
    ("continual", ["dim", "--z-dim", "2"], "--z-dim 2: expected more than the 2 classes"),
    ("continual", ["dgr", "--z-dim", "5"], "--z-dim 5: expected more than the 10 classes"),
    ("continual", ["gdumb", "--memory-bytes", "4000"], "expected room for one of each class, "
    "7850 bytes or more"),
    ("continual", [*CONDENSED, "9"], "--buffer-size 9: expected room for one image of each of the 10 "
    "classes"),
    ("continual", [*CONDENSED, "50", "--condense-network", "vgg"], "unknown network 'vgg'"),
    ("continual", [*CONDENSED, "50", "--condense-steps", "0"], "argument --condense-steps: found 0, "
    "expected a whole number >= 1"),
    ("continual", ["condensed", "--memory-bytes", "7849"], "expected room for one of each "
    "class, 7850 bytes or more"),
    ("continual", ["--codec", "gif"], "argument --codec: invalid choice: 'gif'"),
    ("continual", ["--quality", "99"], "argument --quality: found 99, expected a whole number >= 1 and <= "
    "95"),
    ("continual", ["--class-order", "-1"], "argument --class-order: found -1"),
    *(("continual", [method, flag, value], f"argument {flag}: found {value}")
      for method, flag, value in (("der++", "--alpha", "-1"), ("der++", "--beta", "-1"),
                                  ("cls-er", "--consistency", "-1"),
                                  ("dim", "--distill-weight", "2"), ("dgr", "--distill-weight", "2"))),
    *((s, ["--data", "mnist"], "--data mnist: {gan} was trained on digits")
      for s in ("pool_match", "validate")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "extra", "message"), CASES, ids=lambda v: v if isinstance(v, str) else " ".join(v)
)
def test_bad_flags(script, extra, message, trained, tmp_path, capsys):
    gan = trained / "gan" / "last.pth"
    assert message.format(gan=gan) in refused(script, extra, tmp_path, capsys, gan)


@pytest.mark.parametrize("script", ["pool_match", "validate"])
def test_bad_checkpoints(script, trained, tmp_path, capsys):
    gan, bad = trained / "gan" / "last.pth", tmp_path / "bad"
    bad.mkdir()
    flag = FLAGS[script][0]
    for name, message in bad_checkpoints(bad, gan).items():
        line = refused(script, [flag, str(bad / name)], tmp_path, capsys, gan)
        assert message in line
        assert str(bad / name) in line
    assert not (bad / "executed").exists()


@pytest.mark.parametrize("script", ["pool_match", "validate"])
def test_a_reference_checkpoint_of_another_set(script, tmp_path, capsys, trained):
    reference_checkpoint(tmp_path / "official.pth", channels=3, size=32, width=4)
    line = refused(
        script,
        [FLAGS[script][0], str(tmp_path / "official.pth"), "--data", "digits"],
        tmp_path,
        capsys,
        trained,
    )
    assert "was made for channels 3, found 1 in digits; name its set with --data" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("script", STAGES)
def test_cuda_without_one(script, trained, tmp_path, capsys):
    line = refused(script, ["--device", "cuda"], tmp_path, capsys, trained / "gan" / "last.pth")
    assert "--device cuda: no CUDA device is available" in line


@pytest.mark.parametrize("script", EVERYWHERE)
def test_data_that_is_not_there(script, trained, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    weight = tmp_path / "official.pth"
    reference_checkpoint(weight, channels=3, size=32, width=4)
    use = ["--data", "cifar10"] + ([] if script == "gen_condense" else [FLAGS[script][0], str(weight)])
    line = refused(script, [*use, "--data-dir", str(tmp_path / "file")], tmp_path, capsys, trained)
    assert f"--data-dir {tmp_path / 'file'}: is a file, expected a folder" in line
    line = refused(script, [*use, "--data-dir", str(tmp_path / "empty")], tmp_path, capsys, trained)
    assert f"--data-dir {tmp_path / 'empty'}: cifar10 not found, expected cifar-10-batches-py/" in line
    assert "the download failed" in line


@pytest.mark.parametrize("script", STAGES)
def test_a_results_folder_that_cannot_be_written(script, trained, tmp_path, capsys, monkeypatch):
    gan = trained / "gan" / "last.pth"
    (tmp_path / "taken").write_text("a file")
    line = refused(script, ["--results-dir", str(tmp_path / "taken")], tmp_path, capsys, gan)
    assert f"{tmp_path / 'taken'}" in line
    assert "cannot be written" in line

    def denied(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert "cannot be written (Permission denied)" in refused(script, [], tmp_path, capsys, gan)


@pytest.mark.parametrize("script", [*TRAINING, "continual"])
def test_a_results_folder_of_something_else(script, trained, tmp_path, capsys):
    gan = trained / "gan" / "last.pth"
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "args.json").write_text("[1]")
    assert "expected the args.json of a run" in refused(script, [], tmp_path, capsys, gan)
    (folder / "args.json").write_text('{"fixed": 3}')
    assert "expected the args.json of a run" in refused(script, [], tmp_path, capsys, gan)
    (folder / "args.json").unlink()
    torch.save({"generator": {}}, folder / "last.pth")
    assert "holds last.pth but no args.json" in refused(script, [], tmp_path, capsys, gan)


def test_a_results_json_that_is_not_one(trained, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / ".lock").touch()  # the lock's file stays in the folder
    for text in ("{half", '{"a": 1}', "[1]", "7"):
        (tmp_path / "bad" / "results.json").write_text(text)
        line = refused("validate", [], tmp_path, capsys, trained / "gan" / "last.pth")
        assert "results.json: expected a list of rows" in line


def test_a_generator_needs_its_checkpoint(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        run(SCRIPTS["validate"], ["--tag", "t", "--results-dir", str(tmp_path)])
    assert error.value.code == 2
    assert "--source generator needs --pretrain-weight" in capsys.readouterr().err


def test_a_missing_weight_is_one_line(capsys):
    with pytest.raises(SystemExit) as error:
        SCRIPTS["pool_match"].parse_args([])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--weight" in line


def test_a_foreign_checkpoint_in_the_place_of_last_pth(tmp_path, capsys, trained):
    flags = gan_flags(tmp_path, "--epochs", "1")
    run(SCRIPTS["gen_condense"], flags)
    torch.save({"generator": {}}, tmp_path / "gan" / "last.pth")
    args = (tmp_path / "gan" / "args.json").read_text()
    with pytest.raises(SystemExit) as error:
        run(SCRIPTS["gen_condense"], flags)
    assert error.value.code == 2
    assert "last.pth: not a checkpoint of this run" in capsys.readouterr().err
    assert (tmp_path / "gan" / "args.json").read_text() == args


@pytest.mark.parametrize("script", STAGES)
def test_a_folder_that_another_process_writes_to(script, trained, tmp_path, capsys):
    (tmp_path / "bad" / "outputs").mkdir(parents=True)
    with locked(tmp_path / "bad"):
        line = refused(script, [], tmp_path, capsys, trained / "gan" / "last.pth")
    assert "another process is writing there" in line


@pytest.mark.parametrize(("number", "code"), [(errno.EACCES, 2), (errno.EIO, 1)])
def test_any_other_fault_of_a_file_is_one_line(monkeypatch, tmp_path, capsys, number, code):
    def broken(*args, **kwargs):
        raise OSError(number, os.strerror(number), "some/file")

    monkeypatch.setattr("gen_condense.load_data", broken)
    with pytest.raises(SystemExit) as error:
        run(SCRIPTS["gen_condense"], gan_flags(tmp_path))
    assert error.value.code == code
    assert f"some/file: {os.strerror(number)}" in capsys.readouterr().err


def test_every_set_but_digits_and_folder_can_be_downloaded():
    import torchvision

    for name, row in DATASETS.items():
        assert name == "digits" or hasattr(torchvision.datasets, row.torchvision_name)
    assert (ROOT / "requirements.txt").exists()
