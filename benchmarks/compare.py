"""Paired difference between rows of results.json: the same classifier seeds on two sources of images.

    python benchmarks/compare.py results/test results/test --a source=generator storage=int8 --b
    source=random-real

Two rows are a pair if they agree in data, recipe, budget, ipc, classifier and seed, so that accs[i] of both
come from one classifier seed. Prints the mean difference A - B in percentage points with its 95 % bootstrap
interval over classifiers, and over generators if A has several.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    # Ctrl-C during the imports ends the process without a traceback
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np

from scoring.results import RESULTS, TRAININGS, file_of
from utils import Parser, UsageError, cli

# Settings in which the rows of a pair agree; one that an older row does not have counts as None.
PAIRED = "dataset split tested_on val_size recipe epochs batch_size lr decay lr_decay decay_at_half".split()
PAIRED += "dsa_strategy dsa_composition mix_p ema budget ipc classifier seed".split()
# Settings that are printed if a pair differs in them.
COMPARED = (
    "source trained storage filter labels temperature file set match_bytes quality amp compile device".split()
)
COMPARED += "checkpoint_sha256 file_sha256 teacher_sha256 drawn_from".split()
ASIDE = (*RESULTS, *TRAININGS, "generator_bytes", "curve", "save_classifiers", "commit", "torch", "device")
RESAMPLES = 10_000
FEW = 5  # classifiers, below which the interval is marked


def read_rows(path: str) -> list[dict]:
    """The rows with results of a results.json, given as the file or its folder, or of a record.

    Raises UsageError if it is something else.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    try:
        content = json.loads(file.read_text())
        rows = content["rows"] if isinstance(content, dict) else content
        rows = [row for row in rows if row["source"] and row["accs"]]
        if not rows:
            raise ValueError("no row with a result")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"something else ({error})"
        raise UsageError(f"{file}: expected the results.json of validate.py, found {reason}") from None
    return rows


def identity(row: dict) -> str:
    """A row's settings as text.

    Rows have the same text if they differ only in their results, the training of the generator, the set of
    the file or of the --group, where they ran, or what else was kept.
    """
    settings = {name: value for name, value in row.items() if name not in ASIDE and value is not None}
    return json.dumps(settings | ({"file": file_of(row)} if file_of(row) else {}), sort_keys=True)


def text(value) -> str:
    """A value as it is written in NAME=VALUE."""
    return "none" if value is None else str(value)


def choose(path: str, flag: str, filters: list[str]) -> list[dict]:
    """The rows for which every NAME=VALUE holds. Raises UsageError if there is none."""
    rows = read_rows(path)
    for given in filters:
        name, _, value = given.partition("=")
        values = sorted({text(row.get(name)) for row in rows})
        rows = [row for row in rows if text(row.get(name)) == value]
        if not rows:
            raise UsageError(f"{flag} {given}: no row left of {path} has it, found {', '.join(values)}")
    return rows


def pairs_of(rows_a: list[dict], rows_b: list[dict]) -> list[tuple[dict, dict]]:
    """Each row of A with each other row of B that agrees with it.

    Raises UsageError if there is none; the error names a setting in which the two most similar rows differ.
    """
    pairs = [(a, b) for a in rows_a for b in rows_b if a != b]
    if not pairs:
        raise UsageError("A and B are one and the same row, expected two")
    apart = [[name for name in PAIRED if a.get(name) != b.get(name)] for a, b in pairs]
    if all(apart):
        nearest = min(range(len(pairs)), key=lambda i: len(apart[i]))
        name = apart[nearest][0]
        a, b = (text(row.get(name)) for row in pairs[nearest])
        raise UsageError(f"no row of A pairs with one of B: the nearest two differ in {name}, {a} and {b}")
    return [pair for pair, names in zip(pairs, apart, strict=True) if not names]


def compare(rows: list[dict], b: dict) -> dict:
    """The difference between rows of one or several generators and one row, over the classifiers of all.

    The bootstrap draws generators and classifier seeds with replacement. It draws the same seeds for each
    generator, since B's part is common to all of them. low and high are None for one classifier.
    """
    a = rows[0]
    n = min(len(row["accs"]) for row in (*rows, b))
    rng = np.random.default_rng(0)
    accs_a = np.array([row["accs"][:n] for row in rows])  # (generators, n)
    accs_b = np.array(b["accs"][:n])
    differences = accs_a - accs_b
    generators, classifiers = (rng.integers(size, size=(RESAMPLES, size)) for size in differences.shape)
    means = differences[generators[:, :, None], classifiers[:, None]].mean((1, 2))
    low, high = np.percentile(means, (2.5, 97.5)).tolist() if n > 1 else (None, None)
    names = [name for name in COMPARED if a.get(name) != b.get(name)]
    differs = ", ".join(f"{name} {text(a.get(name)):.12} / {text(b.get(name)):.12}" for name in names)
    return {
        "place": "{dataset}, {classifier}, ipc {ipc}, {budget}".format_map({k: a.get(k) for k in PAIRED}),
        "differs": f"over {len(rows)} generators of A" if len(rows) > 1 else differs or "no setting",
        "n": n,
        "of": [len(a["accs"]), len(b["accs"])] if len(rows) == 1 else [n],
        "mean_a": float(accs_a.mean()),
        "mean_b": float(accs_b.mean()),
        "difference": float(differences.mean()),
        "low": low,
        "high": high,
    }


def lines_of(result: dict) -> str:
    """Two lines: what is compared; then the means, their difference in points, its interval, and a caveat if
    needed."""
    n, low, high = result["n"], result["low"], result["high"]
    counts = " (of {} and {})".format(*result["of"]) if len(set(result["of"])) > 1 else ""
    interval = "no interval of one"
    if low is not None:
        verdict = "includes 0" if low <= 0 <= high else "excludes 0"
        interval = f"95 % [{low:+.2f}, {high:+.2f}] {verdict}" + f" (few: n < {FEW})" * (n < FEW)
    means = "A {mean_a:.2f}, B {mean_b:.2f}, A - B {difference:+.2f} points".format_map(result)
    return f"{result['place']}: {result['differs']}\n  n {n}{counts}, {means}, {interval}"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument(
        "results_a", metavar="A", help="folder of validate.py, its results.json, or a record of such rows"
    )
    parser.add_argument("results_b", metavar="B", help="likewise; may be the same")
    parser.add_argument(
        "--a",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="choose rows of A by their settings; none stands for null",
    )
    parser.add_argument("--b", nargs="+", default=[], metavar="NAME=VALUE", help="choose rows of B, likewise")
    return parser.parse_args(argv)


@cli
def main(args: argparse.Namespace) -> list[dict]:
    pairs = pairs_of(choose(args.results_a, "--a", args.a), choose(args.results_b, "--b", args.b))
    trainings: dict[tuple, dict[str, tuple]] = {}
    for a, b in pairs:
        trainings.setdefault((identity(a), id(b)), {})[text(a.get("checkpoint_sha256"))] = a, b
    results = [compare([a], b) for a, b in pairs]
    for several in trainings.values():
        if len(several) > 1:
            rows, others = zip(*several.values(), strict=True)
            results.append(compare(rows, others[0]))
    print("\n".join(map(lines_of, results)))
    return results


if __name__ == "__main__":
    main(parse_args())
