"""Results of a continual run: its accuracies, its results.json, and the picture of its memory."""

from collections.abc import Sequence
from statistics import mean

import torch
from torch import Tensor, nn

from data import ImageSet, to_float
from engine.seeds import derive_seed
from models.gan import image_grid
from replay.continual import Continual
from replay.learner import Ensemble
from replay.metrics import SETTINGS, accuracies, summary


def evaluate(continual: Continual, images: ImageSet, classes: Sequence[Sequence[int]]) -> None:
    """Test the networks: add a row to the matrix of each and, if there are several, to that of their
    ensemble."""
    models: dict[str, nn.Module] = {learner.name: learner.deployed for learner in continual.learners}
    if len(models) > 1:
        models["ensemble"] = Ensemble(list(models.values()))
    for name, model in models.items():
        rows = continual.acc.setdefault(name, {setting: [] for setting in SETTINGS})
        for setting, row in accuracies(model, images, classes, continual.plan.info.num_classes).items():
            rows[setting].append(row)


def results_of(continual: Continual, settings: dict, seconds: float) -> dict:
    """Return the contents of results.json: `settings`, bytes, cost and results.

    The results are the matrices and metrics of each network and of their ensemble, and the metrics' means
    over networks.
    """
    finished = continual.finished == len(continual.plan.tasks)
    networks = {name: {} for name in continual.acc}
    for name, matrices in continual.acc.items():
        for setting, (initial, *acc) in matrices.items():
            metrics = summary(acc, initial)
            if not finished:  # tasks that are not learnt yet would count as failures
                metrics = dict.fromkeys(metrics)
            networks[name][setting] = {"acc": acc, "initial": initial, **metrics}

    def over_networks(setting: str, metric: str) -> float | None:
        values = [networks[learner.name][setting][metric] for learner in continual.learners]
        return None if None in values else mean(values)

    buffer, generators = continual.memory.buffer, continual.memory.generators
    return settings | {
        "tasks_done": continual.finished,
        "finished": finished,
        "num_bytes": continual.memory.num_bytes(),
        "buffer_images": len(buffer) if buffer is not None else 0,
        "generator": generators
        and {**generators.config, "storage": generators.storage, "layout": generators.layout},
        "images_generated": sum(map(continual.plan.images_generated, range(continual.finished))),
        "seconds": round(seconds, 1),
        "networks": networks,
        "mean": {
            setting: {metric: over_networks(setting, metric) for metric in metrics} for setting in SETTINGS
        },
    }


def print_results(results: dict) -> None:
    """Print a line for each network, for their mean and for their ensemble."""
    print("network         average accuracy  incremental  forgetting  task-il accuracy")
    networks = results["networks"] | ({"mean": results["mean"]} if len(results["networks"]) > 1 else {})
    for name, row in networks.items():
        by_class, by_task = (row[setting] for setting in SETTINGS)
        values = [by_class[x] for x in ("average_accuracy", "average_incremental_accuracy", "forgetting")]
        shown = ["" if x is None else f"{x:.2f}" for x in (*values, by_task["average_accuracy"])]
        print("{:14}  {:>16}  {:>11}  {:>10}  {:>16}".format(name, *shown))
    kept = ", ".join(f"{size:,} of {what}" for what, size in results["num_bytes"].items() if what != "total")
    split = "held-out training images" if results["split"] == "val" else "test set"
    print(f"{results['data']}, {results['method']}, {results['track']}, {split}: percent")
    print(f"kept between tasks: {results['num_bytes']['total']:,} bytes" + (f" ({kept})" if kept else ""))


def picture(continual: Continual, rows: int = 10) -> Tensor | None:
    """Draw a picture (C, H, W) in [-1, 1] of the images in memory: a column for each class, black if there
    are none.

    They are images that the generators make, or the first ones of the buffer, as they are decoded. If the
    image set has more than ten classes, the columns are the first ten that the memory holds. Returns None if
    it holds no images.
    """
    plan = continual.plan
    info = plan.info
    memory = continual.memory
    if memory.buffer:
        stored = memory.buffer.contents()
        classes = stored.labels.unique().tolist()
        images = [to_float(stored.images[stored.labels == label][:rows]).cpu() for label in classes]
    elif memory.generators is not None and memory.generators.stored:
        classes = [label for labels in memory.generators.classes for label in labels]
        rng = torch.Generator().manual_seed(derive_seed(plan.args.seed, "pictures"))
        with torch.no_grad():
            made = memory.generators.build().sample(torch.tensor(classes).repeat(rows), rng)
        images = made.unflatten(0, (rows, -1)).transpose(0, 1)
    else:
        return None
    columns = min(info.num_classes, 10)
    grid = torch.full((rows, columns, info.channels, info.image_size, info.image_size), -1.0)
    for place, (label, some) in enumerate(list(zip(classes, images, strict=True))[:columns]):
        grid[: len(some), label if info.num_classes <= columns else place] = some
    return image_grid(grid.flatten(0, 1), columns)
