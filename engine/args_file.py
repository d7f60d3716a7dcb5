"""args.json of a run folder: the flags of each start, and whether a command may continue the run there."""

import json
from collections.abc import Collection
from pathlib import Path

from engine.environment import environment
from engine.files import write_json
from engine.runtime import Runtime
from utils import UsageError

SCRIPTS = {"gan": "gen_condense.py", "match": "pool_match.py", "continual": "continual.py"}  # of each stage
START = ("flags", "commit", "torch", "device")  # what is kept of earlier starts

# Flags that may differ when a run is continued: where and how it runs, and how it is evaluated. The file at
# --weight is compared by its hash and not by its path.
EVALUATION_FLAGS = ("eval_model", "budget", "ipc", "repeats", "recipe", "epochs_eval", "mix_p")
FREE_FLAGS = {
    *"tag results_dir data_dir weight epochs device amp channels_last graphs compile".split(),
    *"save_interval print_freq eval_interval".split(),
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
        self.path = folder / "args.json"
        self.stage = stage
        self.flags = flags
        self.fixed = {name: value for name, value in flags.items() if name not in free} | inputs
        self.earlier: list[dict] = []  # the records of the starts before this one
        saved = (folder / "last.pth").exists()
        if not self.path.exists():
            if saved:
                reason = "holds last.pth but no args.json, so it cannot be continued"
                raise UsageError(f"{folder} {reason}; use another --tag")
            return
        try:
            args = json.loads(self.path.read_text())
            fixed = dict(args["fixed"])
            self.earlier = [*args["earlier"], {name: args[name] for name in START}]
            flags = args["flags"]
            guess = "continual" if "method" in flags else "match" if "weight" in flags else "gan"
            other = args.get("stage") or guess  # an older file does not name its stage
        except (ValueError, KeyError, TypeError):
            reason = "expected the args.json of a run, found something else"
            raise UsageError(f"{self.path}: {reason}; use another --tag") from None
        if not saved:  # a run that failed before its first checkpoint: there is nothing to continue
            return
        if other != stage:
            scripts = f"holds a run of {SCRIPTS.get(other, other)}, found {SCRIPTS[stage]}"
            raise UsageError(f"--tag: {folder} {scripts}; give another --tag")
        self._compare(fixed, json.loads(json.dumps(self.fixed)))

    def _compare(self, saved: dict, given: dict) -> None:
        for name in saved | given:
            before = saved.get(name)
            now = given.get(name)
            of_one_version = name not in saved or name not in given  # a flag that the other does not have
            if before == now or (of_one_version and not before and not now):
                continue
            flag = "--" + name.replace("_", "-") if name in self.flags else f"the {name}"
            values = f"with {flag} {_short(before)}, found {flag} {_short(now)}"
            hint = "give the same to continue it, or another --tag"
            if name in saved and name not in given:
                hint = "it was started by another version of this code; give another --tag"
            raise UsageError(f"{self.path.parent} holds a run {values}: {hint}")

    def write(self, runtime: Runtime) -> None:
        """Write the file, with this start added."""
        start = {"stage": self.stage, "flags": self.flags, "chosen": runtime.chosen(), "fixed": self.fixed}
        write_json(self.path, start | {**environment(runtime.device), "earlier": self.earlier})


def _short(value) -> str:
    """`value` as text of at most 80 characters, for an error message."""
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
