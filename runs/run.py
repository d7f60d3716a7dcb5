"""Run an experiment of runs/experiments.py: all its rows, at each budget and with each seed.

    python runs/run.py --list
    python runs/run.py continual --data fashion --bytes 50000 --jobs 2
    python runs/run.py readme

Skips what is finished; stopped, the same command continues. A run that is refused, such as a method that does
not fit a small budget, is named at the end. Then prints the table and draws the figure.
"""

import argparse
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Ctrl-C during the imports ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import continual
from runs.experiments import EXPERIMENTS, Commands, jpeg_quality
from utils import Parser, UsageError, cli, positive_int, seed_number, tell


class Run(NamedTuple):
    """A command of a script. group: its tag without the seed; the runs of a group take about equal time."""

    tag: str
    group: str
    command: list[str]


def slug(name: str) -> str:
    """The part of a tag that stands for a row: er-ace, condensed-images-loss-of-er."""
    return re.sub(r"[^a-z0-9+.]+", "-", name.lower()).strip("-")


def runs_of(args: argparse.Namespace) -> list[list[Run]]:
    """The chains of an experiment; the runs of a chain follow one another."""
    experiment = EXPERIMENTS[args.name]
    more = [
        "--results-dir",
        args.results_dir,
        "--data-dir",
        args.data_dir,
        *shlex.split(" ".join(args.flags)),
    ]
    if isinstance(experiment, Commands):
        if args.bytes or args.seeds or args.rows:
            raise UsageError(
                f"{args.name}: its commands are fixed, expected none of --bytes, --seeds, --rows"
            )
        if unknown := set(args.data or ()) - set(experiment.commands):
            raise UsageError(f"--data: found {', '.join(unknown)}, expected {', '.join(experiment.commands)}")
        chains = [map(shlex.split, experiment.commands[data]) for data in args.data or experiment.commands]
        return [[Run(words[2], words[2], words + more) for words in chain] for chain in chains]
    names = [slug(row.name) for row in experiment.rows]
    chosen = [slug(name) for name in args.rows or names]
    if unknown := set(chosen) - set(names):
        raise UsageError(
            f"--rows: found {', '.join(unknown)}, expected some of {', '.join(dict.fromkeys(names))}"
        )
    chains = []
    sets, seeds = args.data or experiment.data, args.seeds or experiment.seeds
    for data, seed, row in itertools.product(sets, seeds, experiment.rows):
        budgets = [b for b in args.bytes or experiment.budgets if b in row.budgets] if row.budgets else [None]
        for budget in budgets if slug(row.name) in chosen else ():
            group = f"{data}_{budget}_{slug(row.name)}" if budget else f"{data}_{slug(row.name)}"
            memory = f"--memory-bytes {budget}" if budget else ""
            flags = (
                f"--tag {group}_{seed} --data {data} --seed {seed} {memory} {experiment.common} {row.flags}"
            )
            words = shlex.split(flags.format(quality=jpeg_quality(data)))
            chains.append([Run(f"{group}_{seed}", group, ["continual.py", row.method, *words, *more])])
    return chains


def finished_results(folder: Path) -> dict | None:
    """The results of a finished run of continual.py; None if it is not finished."""
    try:
        results = json.loads((folder / "results.json").read_text())
        return results if results["finished"] and results["seconds"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_finished(run: Run, results: Path) -> bool:
    """Whether a run of continual.py is finished. Raises UsageError if it was made with other flags."""
    folder = results / run.tag
    finished = finished_results(folder)
    if finished is None:
        return False
    made = finished.get("flags", {})
    asked = vars(continual.parse_args(run.command[1:]))
    for name in (made.keys() & asked.keys()) - continual.FREE:
        if made[name] != asked[name]:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{folder} was made with {flag} {made[name]}, found {flag} {asked[name]}: "
                "expected another --results-dir"
            )
    return True


def left(runs: list[Run], results: Path) -> str:
    """How many runs are to go, and the time of those of which one of the group is finished."""
    alike = [map(finished_results, results.glob(f"{run.group}_[0-9]*")) for run in runs]
    finished = [[one["seconds"] for one in group if one] for group in alike]
    known = [max(seconds) for seconds in finished if seconds]
    minutes = f"{len(known)} of them in about {sum(known) / 60:.0f} min" if known else "time not known yet"
    return f"{len(runs)} to go, {minutes}"


def best_quality(folder: Path) -> int:
    """The JPEG quality whose real images are best, of the rows in a folder of validate.py."""
    rows = json.loads((folder / "results.json").read_text())
    return max((row["mean"], row["quality"]) for row in rows if row["source"] == "random-real-jpeg-scan")[1]


def command_of(run: Run, results: Path) -> list[str]:
    """The words of a run's command, with the results folder and the chosen quality filled in."""
    words = [word.replace("{results}", str(results)) for word in run.command]
    quality = results / f"{run.tag}_quality"
    if "{quality}" in words and quality.exists():
        words[words.index("{quality}")] = str(best_quality(quality))
    return [os.environ.get("PYTHON", sys.executable), *words]


def start(run: Run, results: Path, jobs: int) -> subprocess.Popen:
    """Start a run; beside others it writes to RESULTS/TAG.log what it would print."""
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))} | os.environ
    results.mkdir(parents=True, exist_ok=True)
    output = (results / f"{run.tag}.log").open("w") if jobs > 1 else None
    words = command_of(run, results)
    # in a session of its own: Ctrl-C reaches this program, which passes it on
    return subprocess.Popen(words, env=environment, stdout=output, stderr=output, start_new_session=True)


def run_all(chains: list[list[Run]], results: Path, jobs: int) -> list[str]:
    """Run the chains, `jobs` of them side by side. Returns the tags of runs that were refused.

    Raises SystemExit if a run fails otherwise; the other runs are then stopped, as they are at Ctrl-C.
    """
    refused: list[str] = []
    running: dict[subprocess.Popen, list[Run]] = {}
    waiting = list(chains)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                to_go = [run for chain in (*waiting, *running.values()) for run in chain]
                chain = waiting.pop(0)
                print(f"== {chain[0].tag}; {left(to_go, results)}", flush=True)
                running[start(chain[0], results, jobs)] = chain
            time.sleep(0.05)
            for process in [process for process in running if process.poll() is not None]:
                run, *rest = running.pop(process)
                if process.returncode == 2:
                    refused += [run.tag, *(later.tag for later in rest)]
                elif process.returncode:
                    tell(f"run.py: {run.tag} failed; the same command continues")
                    raise SystemExit(process.returncode)
                elif rest:
                    waiting.insert(0, rest)
    finally:
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.wait()
    return refused


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("name", nargs="?", choices=EXPERIMENTS, help="experiment")
    parser.add_argument("--list", action="store_true", help="list the experiments and their rows")
    parser.add_argument("--show", action="store_true", help="print the commands, run nothing")
    parser.add_argument("--data", nargs="+", help="image sets (default: the experiment's)")
    parser.add_argument("--bytes", nargs="+", type=positive_int, help="budgets (default: the experiment's)")
    parser.add_argument("--seeds", nargs="+", type=seed_number, help="seeds (default: the experiment's)")
    parser.add_argument("--rows", nargs="+", help="rows by their names (default: all)")
    parser.add_argument(
        "--jobs", type=positive_int, default=1, help="runs side by side; they share the cores"
    )
    parser.add_argument("--results-dir", default="results", help="where results go")
    parser.add_argument("--data-dir", default="datasets", help="where the image sets lie")
    parser.add_argument(
        "--flags", nargs=argparse.REMAINDER, default=[], help="all that follows is added to each command"
    )
    return parser.parse_args(argv)


def show_list() -> None:
    for name, experiment in EXPERIMENTS.items():
        print(f"{name}: {experiment.summary}")
        if not isinstance(experiment, Commands):
            for row in dict.fromkeys(row.name for row in experiment.rows):
                print(f"    {row}")


def report(args: argparse.Namespace, chains: list[list[Run]], results: Path) -> None:
    """Print the table and draw the figure of what is finished."""
    experiment = EXPERIMENTS[args.name]
    if isinstance(experiment, Commands):
        paths = [results / f"front_{data}" for data in args.data or experiment.commands]
        command = ["figs/make_figures.py", *map(str, paths), "--readme"]
    else:
        paths = [results / run.tag for (run,) in chains if finished_results(results / run.tag)]
        command = ["figs/draw_continual.py", *map(str, paths), *experiment.table.split()]
        command += ["--out", str(results / args.name)] * bool(experiment.table)
    if paths:
        print(shlex.join(["python", *command]), flush=True)
        if status := subprocess.run([sys.executable, *command]).returncode:
            raise SystemExit(status)


@cli
def main(args: argparse.Namespace) -> None:
    if args.list:
        return show_list()
    if not args.name:
        raise UsageError(f"expected an experiment: {', '.join(EXPERIMENTS)}")
    os.chdir(Path(__file__).resolve().parent.parent)
    results = Path(args.results_dir)
    chains = runs_of(args)
    if args.show:
        for run in (run for chain in chains for run in chain):
            print(shlex.join(["python", *command_of(run, results)[1:]]))
        return
    to_do = chains
    if not isinstance(EXPERIMENTS[args.name], Commands):
        to_do = [chain for chain in chains if not is_finished(chain[0], results)]
    refused = run_all(to_do, results, args.jobs)
    if refused:
        where = f"{results}/TAG.log" if args.jobs > 1 else "above"
        tell(f"refused, see {where}: {' '.join(refused)}")
    report(args, chains, results)
    if to_do and len(refused) == sum(map(len, to_do)):
        raise SystemExit(2)


if __name__ == "__main__":
    main(parse_args())
