"""Every flag declared is read, every flag read is declared, and flags that scripts share agree."""

import argparse
import ast
import re
from dataclasses import fields

import pytest
from conftest import ROOT, SCRIPTS, TOOLS

from engine.args_file import FREE_FLAGS
from models.condense import Condensing
from replay.methods import METHODS
from utils import Parser

# A flag that means the same in two scripts, with a reason for another default.
OWN_DEFAULTS = {
    "gan": "DiM's pair in stage 1, the residual one as a memory, where it buys more width for its bytes",
    "tag": "gan, match, test: a command without one is complete",
    "data": "stages 2 and 3 take it from the checkpoint",
    "epochs": "150 in stage 1, 100 in stage 2",
    "batch_size": "128, 64, or the recipe's",
    "lr": "1e-4, 5e-6, or the recipe's",
    "ipc": "several in stage 3, or those of a file",
    "budget": "several in stage 3",
    "repeats": "one classifier while training, five for a result",
    "epochs_eval": "the recipe's in stage 3",
    "restat": "a task's generator is an average over few steps",
    "ema": "likewise",
    "pool": "in stage 4 the networks that are trained",
    "dsa_strategy": "the recipe's in stage 3",
    "storage": "int8 in stage 4, the file's in stage 3",
    "match_batch": "in stage 4 that of matching alone",
}


OWN_TYPES = {
    "batch_size": "BatchNorm needs two",
    "match_batch": "0 is none in stage 2; stage 4 has it for matching alone",
}


def declared(script: str) -> dict[str, argparse.Action]:
    """The flags of a script by name, those of all its sub-parsers."""
    seen = {}

    def collect(parser: argparse.ArgumentParser) -> None:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for sub_parser in action.choices.values():
                    collect(sub_parser)
            if action.dest != "help":
                seen[action.dest] = action

    class Stop(Exception):
        pass

    def record(self, argv):
        collect(self)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "parse_args", record)
        with pytest.raises(Stop):
            (SCRIPTS | TOOLS)[script].parse_args([])
    return seen


def read(path, name: str = "args") -> set[str]:
    """The attributes taken from a variable of this name."""
    tree = ast.parse(path.read_text())
    return {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and name in (getattr(n.value, "id", ""), getattr(n.value, "attr", ""))
    }


def read_elsewhere(script: str) -> set[str]:
    """The flags that a script hands on as a whole: to a check of them, or to the settings of a learner."""
    condensing = {f"condense_{field.name}" for field in fields(Condensing)}
    if script == "validate":
        return condensing | read(ROOT / "scoring" / "inputs.py")
    if script == "continual":
        settings = set().union(*(read(path) for path in (ROOT / "replay").glob("*.py")))
        return settings | condensing | {flag for method in METHODS.values() for flag in method.flags}
    return set()


@pytest.mark.parametrize("script", SCRIPTS | TOOLS)
def test_flags_declared_are_the_flags_read(script):
    flags = set(declared(script))
    if script == "pool_match":
        flags -= {"recipe_match"}  # it sets the defaults of others
    assert flags == read(ROOT / f"{script}.py") | read_elsewhere(script)


@pytest.mark.parametrize("script", SCRIPTS | TOOLS)
def test_every_flag_has_a_help_text(script):
    assert all(action.help for name, action in declared(script).items() if name != "method")


def test_the_flags_of_every_method_are_walked():
    flags = declared("continual")
    assert {"method", "alpha", "gan_steps", "condense_steps", "retrain_steps", "buffer_size"} <= set(flags)


HELPS = [*((script,) for script in SCRIPTS | TOOLS), *(("continual", method) for method in METHODS)]


@pytest.mark.parametrize("script", HELPS, ids=" ".join)
def test_help_names_each_default_once(script, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    name, *method = script
    with pytest.raises(SystemExit):
        (SCRIPTS | TOOLS)[name].parse_args([*method, "--help"])
    text = capsys.readouterr().out
    if name == "continual":
        assert len(text.splitlines()) <= 90
    assert "None)" not in text
    assert not re.search(r"\(default[^()]*\)\s+\(default", text)


def test_shared_flags_agree():
    flags = {script: declared(script) for script in SCRIPTS}
    for one in SCRIPTS:
        for other in SCRIPTS:
            for name in set(flags[one]) & set(flags[other]):
                a, b = flags[one][name], flags[other][name]
                assert a.type == b.type or name in OWN_TYPES, name
                assert (a.choices and list(a.choices)) == (
                    b.choices and list(b.choices)
                ) or name == "match", name
                assert a.required == b.required, name
                if name not in OWN_DEFAULTS:
                    assert (a.default, a.nargs) == (b.default, b.nargs), name


def test_flags_free_to_change_exist():
    assert set(declared("pool_match")) >= FREE_FLAGS
    assert set(declared("gen_condense")) >= FREE_FLAGS - {"weight"}


def test_nothing_writes_to_args_after_parsing():
    for script in SCRIPTS:
        for node in ast.walk(ast.parse((ROOT / f"{script}.py").read_text())):
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AugAssign)
                else []
            )
            assert not any(
                isinstance(t, ast.Attribute) and isinstance(t.value, ast.Name) and t.value.id == "args"
                for t in targets
            )
