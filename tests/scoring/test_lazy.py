"""Sources are listed before they are made, and made by all ranks before any of them trains a classifier."""

import json

import pytest
import torch
from conftest import run, validate_flags

import validate
from engine.runtime import Runtime
from models.condense import Condensed
from scoring import drawing, herding

MADE = "--condense-steps 3 --condense-batch 4 --draw matched --draw-steps 2 --herding-epochs 1".split()


@pytest.fixture
def flags(trained) -> list[str]:
    weight = ["--pretrain-weight", str(trained / "match" / "last.pth"), "--val-size", "1180"]
    sources = ["--source", "generator", "condensed", "herding", "--budget", "fixed", "--repeats", "1"]
    return [*weight, *sources, *MADE, "--ipc", "2", "3", "--match-bytes", "condensed"]


@pytest.fixture
def events(monkeypatch) -> list[str]:
    """What a command does, in its order: lines that it prints, sources that it makes, jobs dealt out."""
    done = []

    def recorded(name: str, work):
        def call(*args, **kwargs):
            done.append(name)
            return work(*args, **kwargs)

        return call

    for place, name in (
        (Condensed, "__init__"),
        (drawing, "matched_set"),
        (herding, "herding_order"),
        (Runtime, "spread"),
    ):
        monkeypatch.setattr(place, name, recorded(name, getattr(place, name)))
    monkeypatch.setattr(validate, "tell", lambda line: done.append(line.split(":")[0]))
    return done


def test_the_first_lines_are_printed_before_anything_is_made_and_jobs_are_dealt_out_after(
    flags, events, tmp_path
):
    run(validate, validate_flags(tmp_path, *flags))
    lines = ["data", "networks", "steps", "steps run on"]
    assert events[:4] == lines
    made = events[4 : events.index("spread")]
    assert {name: made.count(name) for name in made} == {"matched_set": 2, "__init__": 3, "herding_order": 2}
    assert set(events[events.index("spread") :]) == {"spread"}


def test_listing_makes_nothing(flags, events, tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(validate, "plan_jobs", stop)
    with pytest.raises(SystemExit):
        run(validate, validate_flags(tmp_path, *flags))
    assert events == []
    assert not [path for path in (tmp_path / "test").iterdir() if path.is_dir()]


def test_two_ranks_make_the_sources_together_and_write_the_same_rows(flags, driver, tmp_path):
    alone = run(validate, validate_flags(tmp_path / "alone", *flags, "--samples", "2"))
    for samples in ("0", "2"):  # the second time all is there but the example images
        spread = validate_flags(tmp_path / "spread", *flags, "--samples", samples)
        assert driver.call("validate", tmp_path / "steps", spread, ranks=2) == [0, 0]
    rows = json.loads((tmp_path / "spread" / "test" / "results.json").read_text())
    assert [row["accs"] for row in rows] == [row["accs"] for row in alone]
    assert [row.get("samples") for row in rows] == [row.get("samples") for row in alone]


def test_a_distilled_set_needs_no_flag_but_its_file(tmp_path):
    torch.save((torch.randint(0, 256, (20, 1, 28, 28)).byte(), torch.arange(20) // 2), tmp_path / "mine.pt")
    flags = [flag for flag in validate_flags(tmp_path, "--data", "digits") if flag not in ("--ipc", "3")]
    rows = run(validate, [*flags, "--file", str(tmp_path / "mine.pt")])
    assert [(row["source"], row["ipc"]) for row in rows] == [("file", 2), ("random-real", 2), ("real", 2)]
