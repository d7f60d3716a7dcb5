"""A run folder of a run that failed, of one that is longer than asked for, and of another script."""

import json

import pytest
import torch
from conftest import SCRIPTS, continual_flags, gan_flags, match_flags, run, validate_flags

import gen_condense


def refused(script: str, flags: list[str], capsys) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(SCRIPTS[script], flags)
    assert stop.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def broken(gan, *args):
    """A discriminator step whose loss is finite and whose weights are not."""
    with torch.no_grad():
        next(gan.generator.parameters()).fill_(torch.nan)
    return torch.zeros(())


def test_a_failed_run_names_the_step_it_made_and_can_be_tried_with_other_flags(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(gen_condense, "discriminator_step", broken)
        patch.setattr(gen_condense, "generator_loss", lambda scores, *args: scores.nan_to_num().mean())
        with pytest.raises(SystemExit) as stop:
            run(gen_condense, gan_flags(tmp_path, "--epochs", "1", "--lr", "1"))
    assert stop.value.code == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "is not finite at epoch 1, step 5; no checkpoint had been written yet" in line
    folder = run(
        gen_condense, gan_flags(tmp_path, "--epochs", "1", "--lr", "1e-4")
    )  # nothing was saved: nothing to continue
    assert [row["epoch"] for row in folder.lines] == [1]
    args = json.loads((tmp_path / "gan" / "args.json").read_text())
    assert args["fixed"]["lr"] == 1e-4
    assert [start["flags"]["lr"] for start in args["earlier"]] == [1]
    line = refused(
        "gen_condense", gan_flags(tmp_path, "--epochs", "1", "--lr", "2e-4"), capsys
    )  # now there is
    assert "holds a run with --lr 0.0001, found --lr 0.0002" in line


def test_fewer_epochs_than_were_trained_are_told(tmp_path, capsys):
    run(gen_condense, gan_flags(tmp_path, "--epochs", "2"))
    weights = (tmp_path / "gan" / "last.pth").read_bytes()
    capsys.readouterr()
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    assert (
        f"warning: {tmp_path / 'gan'} has 2 epochs, found 1: nothing is left to do" in capsys.readouterr().err
    )
    run(gen_condense, gan_flags(tmp_path, "--epochs", "2"))
    assert "warning" not in capsys.readouterr().err
    assert (tmp_path / "gan" / "last.pth").read_bytes() == weights


@pytest.mark.parametrize("names_its_stage", [True, False])
def test_a_folder_of_another_script_is_named_as_such(names_its_stage, trained, tmp_path, capsys):
    gan = trained / "gan" / "last.pth"
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    path = tmp_path / "gan" / "args.json"
    args = json.loads(path.read_text())
    assert args["stage"] == "gan"
    if not names_its_stage:  # as older ones are
        path.write_text(json.dumps({name: value for name, value in args.items() if name != "stage"}))
    line = refused("pool_match", match_flags(tmp_path, gan, "--tag", "gan"), capsys)
    assert (
        f"--tag: {tmp_path / 'gan'} holds a run of gen_condense.py, found pool_match.py; give another --tag"
        in line
    )
    line = refused("continual", continual_flags(tmp_path, "er", "--tag", "gan"), capsys)
    assert "holds a run of gen_condense.py, found continual.py" in line
    run(SCRIPTS["continual"], continual_flags(tmp_path, "er"))
    assert "holds a run of continual.py, found gen_condense.py" in refused(
        "gen_condense", gan_flags(tmp_path, "--tag", "er"), capsys
    )


def test_continual_keeps_the_results_of_stage_3(tmp_path, capsys):
    run(
        SCRIPTS["validate"],
        validate_flags(tmp_path, "--data", "digits", "--source", "real", "--repeats", "1"),
    )
    before = (tmp_path / "test" / "results.json").read_text()
    line = refused("continual", continual_flags(tmp_path, "er", "--tag", "test"), capsys)
    assert f"--tag test: {tmp_path / 'test' / 'results.json'} is of another run" in line
    assert (tmp_path / "test" / "results.json").read_text() == before
    assert sorted(path.name for path in (tmp_path / "test").glob("[!.]*")) == ["results.json"]


def test_a_run_older_than_a_flag_goes_on_where_the_flag_is_off(tmp_path, capsys):
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    path = tmp_path / "gan" / "args.json"
    args = json.loads(path.read_text())
    assert args["fixed"].pop("restat") == 0
    path.write_text(json.dumps(args))
    line = refused("gen_condense", gan_flags(tmp_path, "--epochs", "1", "--restat", "2"), capsys)
    assert "holds a run with --restat None, found --restat 2" in line
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))


def test_a_run_with_a_flag_that_was_removed_goes_on_where_the_flag_is_off(tmp_path, capsys):
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
    path = tmp_path / "gan" / "args.json"
    args = json.loads(path.read_text())
    args["fixed"]["removed"] = 2
    path.write_text(json.dumps(args))
    line = refused("gen_condense", gan_flags(tmp_path, "--epochs", "1"), capsys)
    assert "holds a run with the removed 2, found the removed None" in line
    args["fixed"]["removed"] = 0
    path.write_text(json.dumps(args))
    run(gen_condense, gan_flags(tmp_path, "--epochs", "1"))
