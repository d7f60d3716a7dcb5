"""Rows of continual-learning runs: what runs that differ only in their seed come to, from their results.json
alone."""

import functools
import json
import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev

import numpy as np

from figs.names import from_flags, names_of
from replay.methods import METHODS
from replay.metrics import SETTINGS
from utils import UsageError

OWN = (
    "tag",
    "seed",
    "results_dir",
    "data_dir",
    "save_interval",
    "print_freq",
    "device",
)  # flags in which runs of one row may differ
SHARED = (
    "method",
    "data",
    "split",
    "track",
    "num_tasks",
    "classes",
    "memory_bytes",
    "steps",
    "commit",
    "torch",
    "device",
    "generator",
)


def read_runs(folders: list[str]) -> list[dict]:
    """The results of each finished run, with its folder. Raises UsageError if there is none, or if one is not
    what continual.py writes."""
    runs = []
    for folder in map(Path, folders):
        path = folder / "results.json"
        try:
            results = json.loads(path.read_text())
            if results["finished"]:
                check(results)
                runs.append(results | {"folder": folder})
            else:
                print(
                    f"{folder}: {results['tasks_done']} of {results['num_tasks']} tasks are done, left out",
                    file=sys.stderr,
                )
        except FileNotFoundError:
            print(f"{folder}: no results.json, left out", file=sys.stderr)
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UsageError(
                f"{path}: expected the results of continual.py, found something else ({error!r})"
            ) from None
    if not runs:
        raise UsageError(f"{' '.join(folders)}: no finished run of continual.py there")
    return runs


def check(results: dict) -> None:
    """Raise ValueError, KeyError or TypeError unless a finished run's results hold what its row is made
    of."""
    METHODS[results["method"]], results["flags"]["lr"], results["num_bytes"]["total"]
    numbers = [
        results["seconds"],
        results["buffer_images"],
        results["images_generated"],
        *results["num_bytes"].values(),
    ]
    if "ensemble" in results["networks"] and len(results["networks"]) < 2:
        raise ValueError("an ensemble of no network")
    singles = [value for name, value in results["networks"].items() if name != "ensemble"]
    shapes = {np.shape(value[setting]["acc"]) for value in singles for setting in SETTINGS}
    steps = 1 if METHODS[results["method"]].at_once else results["num_tasks"]
    if shapes != {(steps, results["num_tasks"])}:
        raise ValueError(
            f"matrices of accuracies {sorted(shapes)}, expected {steps} x {results['num_tasks']}"
        )
    numbers += [
        number for value in singles for setting in SETTINGS for number in np.ravel(value[setting]["acc"])
    ]
    if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers):
        raise ValueError("a number that is not finite, or none")


def label_of(run: dict) -> str:
    """The name of a run's row: that of the folder, without data set, bytes and seed if they are part of
    it."""
    return re.sub(rf"^{re.escape(run['data'])}_(\d+_)?|_{run['seed']}$", "", run["folder"].name)


def spread(values: list[float]) -> float | None:
    """Sample standard deviation; None for a single value."""
    return stdev(values) if len(values) > 1 else None


def mean_by_kind(runs: list[dict], field: str) -> dict[str, float | None]:
    """The mean of a field for each kind of images; None where a run lacks it, as older ones do."""
    values = {kind: [(run.get(field) or {}).get(kind) for run in runs] for kind in runs[0].get(field) or ()}
    return {kind: None if None in of_runs else mean(of_runs) for kind, of_runs in values.items()}


def row_of(runs: list[dict]) -> dict:
    """One row for runs that differ only in their seed. Raises UsageError if a seed occurs twice.

    Values are means over seeds; the value of a seed is the mean over the networks of the pool.
    """
    first, seeds = runs[0], [run["seed"] for run in runs]
    if len(set(seeds)) < len(seeds):
        raise UsageError(
            f"{first['folder']}: seed {max(seeds, key=seeds.count)} stands more than once in its row, "
            "expected each run once"
        )

    def statistics(prefix: str, metric: str, setting: str = "class-il") -> dict:
        values = [run["mean"][setting][metric] for run in runs]
        known = None not in values
        return {
            f"{prefix}mean": mean(values) if known else None,
            f"{prefix}std": spread(values) if known else None,
        }

    def accuracies(setting: str) -> list[float]:
        return [run["mean"][setting]["average_accuracy"] for run in runs]

    def matrix(setting: str) -> list[list[float]]:
        networks = (value for run in runs for name, value in run["networks"].items() if name != "ensemble")
        return np.mean([value[setting]["acc"] for value in networks], 0).round(3).tolist()

    row = {name: first[name] for name in SHARED} | {"label": label_of(first), "lr": first["flags"]["lr"]}
    row |= {"name": asdict(from_flags(first["method"], first["flags"], first["generator"]))}
    row |= {"settings": settings_of(first), "commits": sorted({run["commit"] for run in runs})}
    row |= {"networks": [name for name in first["networks"] if name != "ensemble"], "seeds": seeds}
    row |= {"n": len(runs), "accs": accuracies("class-il")} | statistics("", "average_accuracy")
    row |= {"task_il_accs": accuracies("task-il")} | statistics("task_il_", "average_accuracy", "task-il")
    row |= statistics("forgetting_", "forgetting")
    incremental = "average_incremental_accuracy"
    row[incremental] = statistics("", incremental)["mean"]
    ensembles = [run["networks"]["ensemble"] for run in runs if "ensemble" in run["networks"]]
    scores = [ensemble["class-il"]["average_accuracy"] for ensemble in ensembles]
    row["ensemble_mean"] = mean(scores) if scores else None
    row["num_bytes"] = {k: mean(run["num_bytes"].get(k, 0) for run in runs) for k in first["num_bytes"]}
    row |= {
        name: mean(run[name] for run in runs) for name in ("buffer_images", "images_generated", "seconds")
    }
    row |= {name: mean_by_kind(runs, name) for name in ("distance_ratio", "near_copies")}
    return row | {"acc": matrix("class-il"), "acc_task_il": matrix("task-il")}


@functools.cache
def default_flags() -> dict:
    """The defaults of older runs and what their flags need to have an effect; see the file."""
    return json.loads((Path(__file__).parent / "continual_defaults.json").read_text())


def holds(value: object, needed: str | list) -> bool:
    """Whether a flag's value is what continual_defaults.json asks for: set, not set, or one of a list."""
    return bool(value) == (needed == "set") if isinstance(needed, str) else value in needed


def settings_of(run: dict) -> dict:
    """The flags of a run in which the runs of a row agree.

    Those at the default of older runs, which a run may lack, and those without an effect are left out.
    """
    given, method, frozen = run["flags"], run["method"], default_flags()
    defaults = frozen["defaults"] | frozen["method_defaults"].get(method, {})
    flags = defaults | given | {"method": method}
    aside = {
        name
        for effect in frozen["effects"]
        if not any(
            all(holds(flags[flag], needed) for flag, needed in need.items()) for need in effect["needs"]
        )
        for name in effect["flags"]
    }
    aside |= {*OWN, "class_tables"}
    settings = {
        name: value
        for name, value in given.items()
        if name not in aside and value is not None and value != defaults.get(name)
    }
    if METHODS[method].memory == "generator":
        carried = flags["layout"] == "carried" or (
            not flags["layout"] and (method == "dgr" or flags["oracle"])
        )
        settings["class_tables"] = given.get("class_tables") or ("all" if carried else "task")
        # Runs older than --class-tables have tables of all classes, and those older than --distilled-share
        # 100 steps of matching; runs without --layout are newer than both.
        if "layout" in given and "class_tables" not in given:
            settings["class_tables"] = "all"
        if (
            "layout" in given
            and "distilled_share" not in given
            and given["match_steps"] is None
            and method == "dim"
        ):
            settings["match_steps"] = 100
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
        if place not in longest or row["n"] >= rows[longest[place]]["n"]:
            longest[place] = number
    best: dict[object, dict[int | None, int]] = {}
    for (key, budget, _), number in longest.items():
        numbers = best.setdefault(key, {})
        if budget not in numbers or rows[number]["mean"] > rows[numbers[budget]]["mean"]:
            numbers[budget] = number
    return best
