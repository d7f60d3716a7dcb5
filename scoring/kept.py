"""Files that take long to make and are kept: classifiers, matched sets, condensed sets."""

import json
from collections.abc import Callable
from pathlib import Path

from engine.files import make_folder, short_hash
from engine.runtime import Runtime


def kept_path(folder: Path, stem: str, suffix: str, *settings: object) -> Path:
    """The path of a file whose name holds a hash of all settings that its contents depend on, so that the
    same command finds it again."""
    return folder / f"{stem}_{short_hash(json.dumps(settings))}{suffix}"


def make_once(path: Path, make: Callable[[], None], runtime: Runtime) -> None:
    """Call make(), which writes `path`, on the first rank, unless the file exists. Every rank has to call
    this and waits."""

    def work() -> None:
        if not path.exists():
            make_folder(path.parent)
            make()

    runtime.on_main(work)
