"""Rows of continual-learning runs: what runs that differ only in their seed come to, from their results.json
alone."""

import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from figs.names import from_flags, names_of
from replay.methods import METHODS
from utils import UsageError

# Flags in which runs of one row may differ.
OWN = set("tag seed results_dir data_dir save_interval print_freq device class_tables".split())
SHARED = "method data split track num_tasks classes memory_bytes steps commit torch device generator".split()
# The defaults of older runs, and what their flags need to have an effect; see the file.
OLDER = json.loads((Path(__file__).parent / "continual_defaults.json").read_text())


def read_runs(folders: list[str]) -> list[dict]:
    """The results of each finished run, with its folder.

    Raises UsageError if there is none, or if a file is not what continual.py writes.
    """
    runs = []
    for folder in map(Path, folders):
        path = folder / "results.json"
        if not path.exists():
            print(f"{folder}: no results.json, left out", file=sys.stderr)
            continue
        try:
            run = json.loads(path.read_text()) | {"folder": folder}
            if missing := {*SHARED, "flags", "mean", "networks", "num_bytes", "seconds"} - run.keys():
                raise KeyError(*sorted(missing))
            if run["finished"]:
                runs.append(run)
            else:
                done = f"{run['tasks_done']} of {run['num_tasks']} tasks are done"
                print(f"{folder}: {done}, left out", file=sys.stderr)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UsageError(f"{path}: expected the results of continual.py, found {error!r}") from None
    if not runs:
        raise UsageError(f"{' '.join(folders)}: no finished run of continual.py there")
    return runs


def label_of(run: dict) -> str:
    """The name of a run's row: that of the folder, without data set, bytes and seed if they are part of
    it."""
    return re.sub(rf"^{re.escape(run['data'])}_(\d+_)?|_{run['seed']}$", "", run["folder"].name)


def statistics(runs: list[dict], metric: str, prefix: str = "", setting: str = "class-il") -> dict:
    """Mean and sample standard deviation over runs; None where a run lacks the metric or is the only one."""
    values = [run["mean"][setting][metric] for run in runs]
    known = None not in values
    deviation = stdev(values) if known and len(values) > 1 else None
    return {f"{prefix}mean": mean(values) if known else None, f"{prefix}std": deviation}


def mean_by_kind(runs: list[dict], field: str) -> dict[str, float | None]:
    """The mean of a field for each kind of images; None where a run lacks it, as older ones do."""
    values = {kind: [(run.get(field) or {}).get(kind) for run in runs] for kind in runs[0].get(field) or ()}
    return {kind: None if None in several else mean(several) for kind, several in values.items()}


def row_of(runs: list[dict]) -> dict:
    """One row for runs that differ only in their seed. Raises UsageError if a seed occurs twice.

    Values are means over seeds; the value of a seed is the mean over the networks of the pool.
    """
    first = runs[0]
    seeds = [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{first['folder']}: seed {max(seeds, key=seeds.count)} stands more than once in its row, "
            "expected each run once"
        )
    networks = [name for name in first["networks"] if name != "ensemble"]
    ensembles = [
        run["networks"]["ensemble"]["class-il"]["average_accuracy"]
        for run in runs
        if "ensemble" in run["networks"]
    ]

    def acc(setting: str) -> list[list[float]]:
        """The mean accuracies on each task after each task."""
        matrices = [run["networks"][name][setting]["acc"] for run in runs for name in networks]
        return np.mean(matrices, 0).round(3).tolist()

    return {name: first[name] for name in SHARED} | {
        "label": label_of(first),
        "lr": first["flags"]["lr"],
        "name": asdict(from_flags(first["method"], first["flags"], first["generator"])),
        "settings": settings_of(first),
        "commits": sorted({run["commit"] for run in runs}),
        "networks": networks,
        "seeds": seeds,
        "n": len(runs),
        "accs": [run["mean"]["class-il"]["average_accuracy"] for run in runs],
        **statistics(runs, "average_accuracy"),
        "task_il_accs": [run["mean"]["task-il"]["average_accuracy"] for run in runs],
        **statistics(runs, "average_accuracy", "task_il_", "task-il"),
        **statistics(runs, "forgetting", "forgetting_"),
        "average_incremental_accuracy": statistics(runs, "average_incremental_accuracy")["mean"],
        "ensemble_mean": mean(ensembles) if ensembles else None,
        "num_bytes": {k: mean(run["num_bytes"].get(k, 0) for run in runs) for k in first["num_bytes"]},
        **{
            name: mean(run[name] for run in runs) for name in ("buffer_images", "images_generated", "seconds")
        },
        **{name: mean_by_kind(runs, name) for name in ("distance_ratio", "near_copies")},
        "acc": acc("class-il"),
        "acc_task_il": acc("task-il"),
    }


def holds(value: object, needed: str | list) -> bool:
    """Whether a flag's value is what continual_defaults.json asks for: set, not set, or one of a list."""
    return bool(value) == (needed == "set") if isinstance(needed, str) else value in needed


def settings_of(run: dict) -> dict:
    """The flags of a run in which the runs of a row agree.

    Those at the default of older runs, which a run may lack, and those without an effect are left out.
    """
    given = run["flags"]
    method = run["method"]
    defaults = OLDER["defaults"] | OLDER["method_defaults"].get(method, {})
    flags = defaults | given | {"method": method}
    aside = set(OWN)
    for effect in OLDER["effects"]:
        if not any(all(holds(flags[flag], needed) for flag, needed in n.items()) for n in effect["needs"]):
            aside |= set(effect["flags"])
    settings = {
        name: value
        for name, value in given.items()
        if name not in aside and value is not None and value != defaults.get(name)
    }
    if METHODS[method].memory == "generator":
        settings["class_tables"] = given.get("class_tables") or "task"
        # Runs older than these flags had other defaults; runs without --layout are newer than both.
        if older := [name for name in ("class_tables", "distilled_share") if name not in given]:
            settings |= {"older_than": older} if "layout" in given else {}
    return settings


def rows_of(runs: list[dict]) -> list[dict]:
    """A row for each group of runs that differ only in their seed, in the order in which they were given."""
    groups: dict[str, list[dict]] = {}
    for run in runs:
        groups.setdefault(json.dumps([label_of(run), settings_of(run)], sort_keys=True), []).append(run)
    return [row_of(group) for group in groups.values()]


def best_at_budgets(rows: list[dict], keys: list) -> dict[object, dict[int | None, int]]:
    """{key: {budget in bytes: number of the row}}; `keys` holds the key of each row.

    Of several rows of one name that with the most seeds counts, or the last; of several names that with the
    highest mean.
    """
    longest: dict[tuple, int] = {}
    for number, (name, key, row) in enumerate(zip(names_of(rows), keys, rows, strict=True)):
        place = key, row["memory_bytes"], name
        if row["n"] >= rows[longest.get(place, number)]["n"]:
            longest[place] = number
    best: dict[object, dict[int | None, int]] = {}
    for (key, budget, _), number in longest.items():
        numbers = best.setdefault(key, {})
        numbers[budget] = max(numbers.get(budget, number), number, key=lambda i: rows[i]["mean"])
    return best
