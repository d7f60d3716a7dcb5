"""args.json of a run folder: records the flags of each start, and checks that a command may continue the run
in the folder."""

import json
from collections.abc import Collection
from pathlib import Path

from engine.environment import environment
from engine.files import write_json
from engine.runtime import Runtime
from utils import UsageError

SCRIPTS = {
    "gan": "gen_condense.py",
    "match": "pool_match.py",
    "continual": "continual.py",
}  # by the stage in a checkpoint
ENVIRONMENT = ("commit", "torch", "device")

# Flags that may differ when a run is continued: where and how it runs, and how it is evaluated. The file at
# --weight is compared by its hash and not by its path.
EVALUATION_FLAGS = ("eval_model", "budget", "ipc", "repeats", "recipe", "epochs_eval", "mix_p")
FREE_FLAGS = {
    *(
        "tag",
        "results_dir",
        "data_dir",
        "weight",
        "epochs",
        "device",
        "amp",
        "channels_last",
        "graphs",
        "compile",
        "save_interval",
        "print_freq",
        "eval_interval",
    ),
    *EVALUATION_FLAGS,
}


class ArgsFile:
    """The file args.json in `folder`.

    stage: what kind of run it is, a key of SCRIPTS. flags: all flags, name -> value. inputs: other values
    that must be the same when the run is continued; error messages use their names. free: names of the flags
    that may differ. Raises UsageError if the folder holds the checkpoint of a run with other settings, or one
    whose args.json is missing, or if its args.json is unreadable.
    """

    def __init__(self, folder: Path, stage: str, flags: dict, inputs: dict, free: Collection[str]):
        self.path, self.stage, self.flags = folder / "args.json", stage, flags
        self.fixed = {name: value for name, value in flags.items() if name not in free} | inputs
        self.earlier: list[dict] = []  # the records of the starts before this one
        saved = (folder / "last.pth").exists()
        if not self.path.exists():
            if saved:
                raise UsageError(
                    f"{folder} holds last.pth but no args.json, so it cannot be continued; use another --tag"
                )
            return
        try:
            args = json.loads(self.path.read_text())
            found, self.earlier = (
                dict(args["fixed"]),
                [*args["earlier"], {name: args[name] for name in ("flags", *ENVIRONMENT)}],
            )
            names = args["flags"]  # an older file does not name its stage
            other = args.get("stage") or (
                "continual" if "method" in names else "match" if "weight" in names else "gan"
            )
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{self.path}: expected the args.json of a run, found something else; use another --tag"
            ) from None
        if not saved:  # a run that failed before its first checkpoint: there is nothing to continue
            return
        if other != stage:
            raise UsageError(
                f"--tag: {folder} holds a run of {SCRIPTS.get(other, other)}, found {SCRIPTS[stage]}; give "
                "another --tag"
            )
        self._compare(found, json.loads(json.dumps(self.fixed)))

    def _compare(self, found: dict, asked: dict) -> None:
        for name in {**found, **asked}:
            if name not in found and not asked[name]:
                continue  # a flag that the earlier version did not have, and that is off
            if found.get(name) != asked.get(name):
                flag = "--" + name.replace("_", "-") if name in self.flags else f"the {name}"
                raise UsageError(
                    f"{self.path.parent} holds a run with {flag} {_short(found.get(name))}, found {flag} "
                    f"{_short(asked.get(name))}: "
                    "give the same to continue it, or another --tag"
                )

    def write(self, runtime: Runtime) -> None:
        """Write the file, with this start added."""
        start = {"stage": self.stage, "flags": self.flags, "chosen": runtime.chosen(), "fixed": self.fixed}
        write_json(self.path, start | {**environment(runtime.device), "earlier": self.earlier})


def _short(value) -> str:
    """`value` as text of at most 80 characters, for an error message."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
