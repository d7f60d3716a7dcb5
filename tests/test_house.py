"""The rooms of the house: imports point one way, files stay of one topic, and what the README and DESIGN
promise of the root holds."""

import ast
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

# Lowest first; a room may import from those before it and from itself.
ROOMS = [
    ("utils",),
    ("engine",),
    ("imagesets",),
    ("augment", "data", "losses"),
    ("models",),
    ("scoring",),
    ("replay",),
    ("gen_condense", "pool_match", "validate", "continual"),
    ("benchmarks",),
    ("figs",),
    ("runs",),
]
# The loop of a stage is shown in its script and exists once: rooms that train by it import it from there.
LOOPS = {"gen_condense": "train_gan", "pool_match": "train_match"}
USERS_OF_LOOPS = {"scoring", "replay", "validate", "continual"}
LEVEL = {name: level for level, names in enumerate(ROOMS) for name in names}
SCRIPTS = ROOMS[7]
FILES = [
    path
    for name in LEVEL
    for path in (sorted((ROOT / name).rglob("*.py")) if (ROOT / name).is_dir() else [ROOT / f"{name}.py"])
]


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The modules of this project that a file imports, those inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
    return {name for name in found if name.split(".")[0] in LEVEL}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    own = room(path)
    for module in imported(path):
        other = module.split(".")[0]
        if other in LOOPS and own in USERS_OF_LOOPS:
            continue
        peers = other != own and LEVEL[other] == LEVEL[own] and own not in SCRIPTS
        assert LEVEL[other] <= LEVEL[own], f"{path.name} imports {module}, which lies above it"
        assert not peers, f"{path.name} imports {module}, which lies beside it"


def test_there_is_no_circle_of_files():
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in FILES
    }
    below = {
        name: {module for module in imported(path) if module in names and module != name}
        for name, path in names.items()
    }
    while below:
        free = {name for name, modules in below.items() if not modules & below.keys()}
        assert free, f"a circle among {sorted(below)}"
        below = {name: modules for name, modules in below.items() if name not in free}


def test_of_a_script_only_its_loop_is_imported():
    for path in FILES:
        if room(path) not in USERS_OF_LOOPS | set(LOOPS):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module in SCRIPTS:
                names = [alias.name for alias in node.names]
                assert names == [LOOPS.get(node.module)], f"{path.name} imports {names} of {node.module}"
            elif isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & set(SCRIPTS), path.name
    scripts = {name: imported(ROOT / f"{name}.py") & set(SCRIPTS) for name in LOOPS}
    assert scripts == {"gen_condense": set(), "pool_match": set()}


def test_the_root_shows_what_the_project_is():
    files = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    root = [name for name in files if "/" not in name] or [path.name for path in ROOT.glob("*.py")]
    assert len(root) <= 9, root
    assert {name.removesuffix(".py") for name in root} == {
        name for name in LEVEL if (ROOT / f"{name}.py").exists()
    }


def test_every_package_says_in_one_sentence_what_lives_there():
    for path in FILES:
        if path.name == "__init__.py":
            first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0]
            assert first.endswith("."), path
