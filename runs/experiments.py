"""The experiments that runs/run.py runs: rows with plain names, flags, budgets and seeds.

A row of your own is one line in the rows of an experiment, here of a method that you added to METHODS:

    Row("ER, label smoothing", "er-smooth", f"{SCANS} {REHEARSE} --lr 0.03"),
"""

from dataclasses import dataclass, replace

ANY = range(1, 10**12)  # budgets in bytes
SMALL = range(1, 300_000)
LARGE = range(300_000, 10**12)
SETS = ("cifar10", "fashion", "mnist")
GREY = ("fashion", "mnist", "digits")


@dataclass(frozen=True)
class Row:
    """A row of a table of continual learning: `continual.py METHOD FLAGS` at each budget in `budgets`.

    {quality} in the flags is the JPEG quality of the image set. budgets: None for a method without memory.
    """

    name: str
    method: str
    flags: str = ""
    budgets: range | None = ANY


@dataclass(frozen=True)
class Experiment:
    """Rows, run on each image set, at each budget in bytes and with each seed.

    table: the flags of figs/draw_continual.py that print its table.
    """

    summary: str
    rows: tuple[Row, ...]
    budgets: tuple[int, ...] = (50_000, 150_000, 600_000, 1_500_000, 6_000_000)
    seeds: tuple[int, ...] = (0, 1, 2)
    common: str = "--pool convnet_w32 --epochs 1 --batch-size 32 --no-amp"
    table: str = "--front"
    data: tuple[str, ...] = SETS


@dataclass(frozen=True)
class Commands:
    """Commands of the scripts, one after the other for each image set.

    {results} is the results folder, {quality} what the rows of results/front_DATA_quality choose.
    """

    summary: str
    commands: dict[str, tuple[str, ...]]


def jpeg_quality(data: str) -> int:
    """The JPEG quality of an image set, chosen on held-out images of CIFAR-10 and Fashion-MNIST."""
    return 50 if data in GREY else 12


SCANS = "--codec jpeg-scan --quality {quality}"
REHEARSE = "--rehearse-steps 300 --rehearse-decay linear"
LONG_GAN = "--gan-steps 20000 --gan-batch-size 128 --gan-lr 2e-4"
CLS = "--average-decay 0.99"
CONDENSE = f"--fill-real --condense-steps 300 {SCANS}"
ENERGY = f"{CONDENSE} --condense-match dist --condense-lr 1 --condense-images 64"
START = f"--fill-real --condense-steps 1 --condense-lr 1e-9 {SCANS}"  # the images stay what they were


def condensed(name: str, flags: str) -> tuple[Row, Row]:
    """The rows of a condensed memory: mean features at small budgets, the energy distance at large ones."""
    return (
        Row(name, "condensed", f"{CONDENSE} {flags}", SMALL),
        Row(name, "condensed", f"{ENERGY} {flags}", LARGE),
    )


CONTINUAL = (
    *condensed("condensed images, loss of ER", f"{REHEARSE} --lr 0.03"),
    *condensed("condensed images, loss of ER-ACE", f"--replay-loss er-ace {REHEARSE} --lr 0.1"),
    *condensed("condensed images, loss of CLS-ER", f"--replay-loss cls-er {CLS} {REHEARSE} --lr 0.1"),
    Row(
        "real images that condensing starts from",
        "condensed",
        f"{START} --replay-loss cls-er {CLS} {REHEARSE} --lr 0.1",
    ),
    Row("ER", "er", f"{SCANS} {REHEARSE} --lr 0.03"),
    Row("ER-ACE", "er-ace", f"{SCANS} {REHEARSE} --lr 0.1"),
    Row("CLS-ER", "cls-er", f"{CLS} {SCANS} {REHEARSE} --lr 0.1"),
    Row("DER++", "der++", f"{SCANS} {REHEARSE} --lr 0.1"),
    Row("GDumb", "gdumb", f"{SCANS} --lr 0.03"),
    Row("generator", "dim", f"--gan-steps 750 --gan-batch-size 32 {REHEARSE} --lr 0.03"),
)


def changed(rows: tuple[Row, ...], words: str, flags: str) -> tuple[Row, ...]:
    """The rows with more in their names and flags."""
    return tuple(replace(row, name=f"{row.name}, {words}", flags=f"{row.flags} {flags}") for row in rows)


SCORE = "--eval-model convnet_w32 --ipc 10 --epochs-eval 200 --no-amp"
FILLED = "--storage fp16 --source generator --no-real --match-bytes jpeg-scan"
CONDENSED = (
    "--codec jpeg-scan --quality {quality} --condense-match dist --condense-lr 1 --condense-images 64"
    " --condense-steps 300"
)


def front(data: str, gan: str, matched: str) -> tuple[str, ...]:
    """The commands of the README's table for one image set: the quality on held-out images, then the rows."""
    qualities = (
        f"validate.py --tag front_{data}_quality --pretrain-weight {matched} {FILLED} --quality {quality}"
        f" --val-size 5000 {SCORE} --repeats 2"
        for quality in (12, 25, 50, 75)
    )
    return (
        *qualities,
        f"validate.py --tag front_{data} --data {data} --source random-real condensed real {SCORE}"
        " --repeats 5",
        f"validate.py --tag front_{data} --pretrain-weight {gan} {matched} {FILLED} condensed {CONDENSED}"
        f" {SCORE} --repeats 5",
    )


README = {
    data: front(data, f"weights/{data}_w32.safetensors", f"weights/{data}_w32_matched.safetensors")
    for data in ("cifar10", "fashion")
}
README["mnist"] = (
    "gen_condense.py --tag front_mnist_gan --data mnist --gan dim --width 32 --batch-size 64 --ema 0.999"
    " --lr 1e-3 --lr-d 5e-4 --epochs 3 --eval-interval 0 --val-size 5000 --no-amp",
    "pool_match.py --tag front_mnist_match --recipe-match energy --weight {results}/front_mnist_gan/last.pth"
    " --val-size 5000 --no-amp",
    f"validate.py --tag front_mnist_test --pretrain-weight {{results}}/front_mnist_match/last.pth {SCORE}",
    *front("mnist", "{results}/front_mnist_gan/last.pth", "{results}/front_mnist_match/last.pth"),
)

EXPERIMENTS = {
    "readme": Commands("the front table of the README", README),
    "continual": Experiment("condensed images, real images and generators at equal bytes", CONTINUAL),
    "tune": Experiment(
        "two learning rates for each row, on 5,000 held-out training images",
        changed(CONTINUAL, "rate 0.03", "--lr 0.03 --val-size 5000")
        + changed(CONTINUAL, "rate 0.1", "--lr 0.1 --val-size 5000"),
        budgets=(600_000,),
        seeds=(0,),
        table="",
    ),
    "bounds": Experiment(
        "what lies above and below: all tasks at once, every image kept, no memory",
        (
            Row("all tasks at once", "joint", "--lr 0.03", None),
            Row("every image", "unlimited", "--lr 0.03", None),
            Row("no memory", "finetune", "--lr 0.03", None),
        ),
        table="",
    ),
    "new-networks": Experiment(
        "networks that are trained from scratch on the memory alone",
        (
            *condensed("condensed images, new networks", "--retrain --lr 0.03"),
            Row("GDumb", "gdumb", f"{SCANS} --lr 0.03"),
        ),
        budgets=(50_000, 600_000),
    ),
    "resnet": Experiment(
        "the rows of continual for ResNet-18 and 50 passes, on a GPU; not run so far",
        (
            *changed(tuple(row for row in CONTINUAL if row.method != "dim"), "ResNet-18", ""),
            Row("generator, ResNet-18", "dim", f"{LONG_GAN} {REHEARSE} --lr 0.03"),
        ),
        seeds=(0,),
        common="--pool resnet18_w64 --epochs 50 --batch-size 32 --dsa-strategy crop_flip",
        data=("cifar10",),
    ),
}
