"""Time, memory and work of HireMLP and its inference form, side by side with other backbones.

    python tools/benchmark.py --size 512x512 --against reference swin-t
    python tools/benchmark.py --train --size 512x512 --forms plain plain+cp
    python tools/benchmark.py --forms fused+compile:float16 --against reference:float16
    python tools/benchmark.py --forms plain --profile

Every candidate has a process to itself, so that none profits or suffers from what another left to
the memory allocator. They run in turn, again and again, so that a busy machine slows all of them;
the ratios of the medians are the figures to quote.

A form is `plain` or `fused`, then any of `+cp` (blocks recomputed in the backward pass),
`+channels_last` and `+compile` (as `tools/test.py --compile-backbone`), then its type where that is
not float32, such as `:bfloat16`.

A second table, with `--profile`, has the operations that take the time, as torch's profiler saw
them in a few runs more.

The limit is the time that the machine needs at least: the network's multiply-adds at the rate of a
large matrix product in the same type, or its image, weights and outputs at the rate of a copy.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import multiprocessing
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from _backbone import DTYPES, compile_blocks
from _common import UserError, describe, run
from mmengine.registry import MODELS, DefaultScope
from reference_net import ReferenceNet
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd import DeviceType
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hire_mlp_mm import HireMLP
from hire_mlp_mm.fuse import fuse
from hire_mlp_mm.hire_mlp import ARCHS

FORMS = ("plain", "fused")
OPTIONS = ("cp", "channels_last", "compile")
# Parts of the names of operations. What several lines have belongs to the first.
KINDS = {
    "gradients of convolutions": ("convolution_backward", "mm_backward"),
    "convolutions, matrix products": ("_convolution", "aten::addmm", "aten::mm", "aten::bmm"),
    "norms, their gradients": ("batch_norm", "layer_norm"),
    "GELU, ReLU, their gradients": ("gelu", "aten::relu", "threshold_backward"),
    "copies": ("aten::copy_", "aten::cat", "aten::fill_"),
    "sums and products": ("aten::add", "aten::mul", "aten::sum", "aten::div", "aten::mean"),
    "all else": ("",),
}
PROFILED = 5  # runs
# Writing 5 here makes Linux forget the process's highest memory.
RESET = Path("/proc/self/clear_refs")
# As MMDetection and MMPretrain build them, four maps each.
PEERS: dict[str, dict[str, Any]] = {
    "swin-t": dict(type="mmdet.SwinTransformer"),
    "convnext-t": dict(
        type="mmpretrain.ConvNeXt",
        arch="tiny",
        out_indices=(0, 1, 2, 3),
        gap_before_final_norm=False,
    ),
    "pvtv2-b2": dict(
        type="mmdet.PyramidVisionTransformerV2", embed_dims=64, num_layers=[3, 4, 6, 3]
    ),
    "resnet-50": dict(type="mmdet.ResNet", depth=50),
}


@dataclass
class Figures:
    """What was measured of a candidate. Times are in milliseconds, sizes in bytes."""

    name: str
    dtype: str
    params: int = 0
    macs: int = 0
    moved: int = 0  # image, weights and outputs
    peak: int = 0
    kept: int = 0
    limit: float = 0.0
    times: list[float] = field(default_factory=list)
    kinds: dict[str, float] = field(default_factory=dict)  # see `KINDS`

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", choices=list(ARCHS), default="small")
    parser.add_argument("--forms", nargs="+", default=["plain", "fused"], metavar="FORM")
    parser.add_argument("--against", nargs="*", default=["reference"], metavar="NAME")
    parser.add_argument("--size", default="512x512", help="height x width in pixels")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--train", action="store_true", help="forward and backward, float32")
    parser.add_argument("--runs", type=int, default=10, help="of each candidate (default: 10)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="tell which operations take time")
    parser.add_argument("--json", metavar="FILE", help="write the figures to a new file")
    args = parser.parse_args()
    if args.json and Path(args.json).exists():
        raise UserError(f"{args.json} exists; name another file with --json")
    parse_size(args.size)
    names = [*args.forms, *args.against]
    for name in names:
        parse_name(name, args.train)
    torch.set_num_threads(args.threads)
    candidates = measure(names, args)
    print(report(candidates, args))
    if args.profile:
        print(report_kinds(candidates))
    if args.json:
        figures = [asdict(c) | dict(median=c.median) for c in candidates]
        said = dict(setting=setting(args), candidates=figures)
        Path(args.json).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `512x768`.

    Raises:
        UserError: it is not two positive numbers.
    """
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdigit() and int(part) for part in parts):
        raise UserError(f"--size {text}: expected height x width, such as 512x768")
    return int(parts[0]), int(parts[1])


def parse_name(name: str, train: bool) -> tuple[str, list[str], str]:
    """Form or peer, options and type of a candidate's name, such as `plain+cp:float32`.

    Raises:
        UserError: an unknown name, option or type, or a form that cannot be trained.
    """
    first, _, dtype = name.partition(":")
    form, *options = first.split("+")
    dtype = dtype or "float32"
    known = (*FORMS, "reference", *PEERS)
    if form not in known or dtype not in DTYPES or not set(options) <= set(OPTIONS):
        raise UserError(
            f"unknown {name!r}; expected {', '.join(known)}, then any of +{', +'.join(OPTIONS)}, "
            f"then one of :{', :'.join(DTYPES)}"
        )
    if train and (form == "fused" or dtype != "float32"):
        raise UserError(f"--train {name}: expected a form that trains, in float32")
    if "compile" in options and form not in FORMS:
        raise UserError(f"{name}: +compile is for {' and '.join(FORMS)}")
    if "cp" in options and (form != "plain" or not train):
        raise UserError(f"{name}: +cp is for plain, with --train")
    return form, options, dtype


class Candidate:
    """A network with random weights, and what can be measured of it."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        form, options, dtype = parse_name(name, args.train)
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        self.train, self.options, self.device = args.train, options, args.device
        self.dtype = DTYPES[dtype]
        if form in PEERS:
            with DefaultScope.overwrite_default_scope("mmdet"):
                model = MODELS.build(PEERS[form])
        else:
            model = HireMLP(args.arch, with_cp="cp" in options)
        model.to(self.device, self.dtype)
        model.train(self.train)  # apart: some backbones return nothing here
        title = form if form not in FORMS else f"Hire-{args.arch.capitalize()} {form}"
        self.figures = Figures("+".join([title, *options]), dtype)
        self.image = self.make_image(args.batch, *parse_size(args.size))
        self.count(model)
        if form == "fused":
            model = fuse(model)
        elif form == "reference":
            model = ReferenceNet(model)
        self.model = model
        self.model.train(self.train)
        if "channels_last" in options:
            self.model.to(memory_format=torch.channels_last)
        if "compile" in options:
            compile_blocks(self.model)

    def make_image(self, batch: int, height: int, width: int) -> Tensor:
        image = torch.rand(batch, 3, height, width, device=self.device).to(self.dtype)
        last = "channels_last" in self.options
        return image.contiguous(memory_format=torch.channels_last) if last else image

    def step(self, image: Tensor) -> None:
        """Inference, or forward and backward of the mean square of every map."""
        if not self.train:
            with torch.inference_mode():
                self.model(image)
            return
        self.model.zero_grad(set_to_none=True)
        torch.stack([out.square().mean() for out in self.model(image)]).sum().backward()

    def measure(self) -> Figures:
        """Everything but the times."""
        figures = self.figures
        figures.params = sum(p.numel() for p in self.model.parameters())
        # What comes once: threads, kernels, a compiler's work.
        self.step(self.make_image(len(self.image), 64, 64))
        if "compile" in self.options:
            self.step(self.image)
        figures.peak = peak_bytes(lambda: self.step(self.image), self.image)
        if self.train:
            figures.kept = kept_bytes(self.model, self.image)
        self.step(self.image)
        return figures

    def count(self, network: nn.Module) -> None:
        """Work and bytes of a network; without running it, which would leave memory behind."""
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake, FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = network(fake.from_tensor(self.image))
        moved = [self.image, *outputs, *network.parameters()]
        passes = 3 if self.train else 1  # the gradients of input and weight are two more
        self.figures.macs = passes * counter.get_total_flops() // 2
        self.figures.moved = passes * sum(x.numel() * x.element_size() for x in moved)


# Measuring ---------------------------------------------------------------------------------------


def measure(names: Sequence[str], args: argparse.Namespace) -> list[Figures]:
    """Figures of every candidate, each in a process of its own; the timed runs take turns."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        workers: list[tuple[str, Connection]] = []
        candidates: list[Figures] = []
        for name in names:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, name, args), daemon=True)
            process.start()
            theirs.close()
            stack.callback(process.join)
            stack.callback(ours.close)  # before it is waited for: it ends when nobody asks
            candidates.append(answer_of(name, ours))
            workers.append((name, ours))
        rates = {c.dtype: Rates(args.device, DTYPES[c.dtype]) for c in candidates}
        for _ in range(args.runs):
            for rate in rates.values():
                rate.measure()
            for candidate, (name, worker) in zip(candidates, workers, strict=True):
                candidate.times.append(answer_of(name, worker, ask="time"))
        if args.profile:
            for candidate, (name, worker) in zip(candidates, workers, strict=True):
                candidate.kinds = answer_of(name, worker, ask="kinds")
    for candidate in candidates:
        candidate.limit = rates[candidate.dtype].limit(candidate)
    return candidates


def serve(asked: Connection, name: str, args: argparse.Namespace) -> None:
    """In a candidate's process: its figures, then what is asked, the time of a run or of kinds."""
    try:
        candidate = Candidate(name, args)
        asked.send(candidate.measure())
        answers = dict(time=timed, kinds=profiled)
        while True:
            answer = answers[asked.recv()]
            asked.send(answer(lambda: candidate.step(candidate.image), candidate.image))
    except EOFError:
        pass
    except Exception as error:  # told by the process that asked
        asked.send(describe(error))


def answer_of(name: str, worker: Connection, ask: str = "") -> Any:
    """What a candidate's process says next, once it is asked.

    Raises:
        UserError: it failed, or it is gone.
    """
    try:
        if ask:
            worker.send(ask)
        answer = worker.recv()
    except (EOFError, OSError):
        raise UserError(f"{name}: its process ended, perhaps for want of memory") from None
    if isinstance(answer, str):
        raise UserError(f"{name}: {answer}")
    return answer


def timed(work: Callable[[], object], where: Tensor) -> float:
    """Milliseconds of wall time."""
    wait_for(where)
    start = time.perf_counter()
    work()
    wait_for(where)
    return (time.perf_counter() - start) * 1e3


def profiled(work: Callable[[], object], where: Tensor) -> dict[str, float]:
    """Milliseconds of each of `KINDS` in a run."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * where.is_cuda
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(PROFILED):
            work()
        wait_for(where)
    kinds = dict.fromkeys(KINDS, 0.0)
    for one in profiler.key_averages():
        if one.device_type != DeviceType.CPU:  # a kernel, whose time its operation has, too
            continue
        kind = next(k for k, parts in KINDS.items() if any(part in one.key for part in parts))
        time = one.self_device_time_total if where.is_cuda else one.self_cpu_time_total
        kinds[kind] += time / 1e3 / PROFILED
    return kinds


def wait_for(where: Tensor) -> None:
    """Let a GPU finish what it was given."""
    if where.is_cuda:
        torch.cuda.synchronize(where.device)


class Rates:
    """Milliseconds of a multiply-add and of a copied byte, the best of all that were measured."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        n = 4096 if device.startswith("cuda") else 1024
        self.a, self.b = torch.rand(2, n, n, device=device).to(dtype)
        # The same product as a 1x1 convolution: on a CPU another library makes it.
        self.image, self.kernel = self.a.t().reshape(1, n, n, 1), self.b.view(n, n, 1, 1)
        self.source = torch.empty(2**26, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)
        self.product = self.copy = math.inf

    def measure(self) -> None:
        for work in (lambda: self.a @ self.b, lambda: F.conv2d(self.image, self.kernel)):
            self.product = min(self.product, timed(work, self.a) / len(self.a) ** 3)
        copy = timed(lambda: self.target.copy_(self.source), self.source)
        self.copy = min(self.copy, copy / len(self.source))

    def limit(self, candidate: Figures) -> float:
        """Milliseconds that the multiply-adds take, or the bytes that must move."""
        return max(candidate.macs * self.product, candidate.moved * self.copy)


def kept_bytes(model: nn.Module, image: Tensor) -> int:
    """Bytes that a forward pass keeps for the backward one, parameters and the image aside."""
    known = {x.untyped_storage().data_ptr() for x in (*model.parameters(), image)}
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        outputs = model(image)  # alive until counted, or their storages would be counted again
    del outputs
    return sum(kept.values())


def peak_bytes(work: Callable[[], None], where: Tensor) -> int:
    """Memory at the highest point of some work, beyond what was taken before.

    On a GPU what torch asked for; on a CPU what the process holds, which Linux alone tells: 0
    elsewhere. An allocator keeps what is freed there, so that the first run tells most.
    """
    if where.is_cuda:
        torch.cuda.reset_peak_memory_stats(where.device)
        before = torch.cuda.memory_allocated(where.device)
        work()
        return torch.cuda.max_memory_allocated(where.device) - before
    if not RESET.exists():
        return 0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:  # glibc's: hand back what is free, or it would hide what is taken now
        trim(0)
    RESET.write_text("5")
    before = resident_peak()
    work()
    return resident_peak() - before


def resident_peak() -> int:
    """The most bytes that this process held since `RESET`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


# Telling -----------------------------------------------------------------------------------------


def setting(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    gpu = torch.cuda.get_device_name() if args.device.startswith("cuda") else None
    return dict(
        size=args.size,
        batch=args.batch,
        mode="training step" if args.train else "inference",
        runs=args.runs,
        device=gpu or cpu_name(),
        threads=args.threads,
        torch=torch.__version__,
        python=platform.python_version(),
    )


def cpu_name() -> str:
    """The processor's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "CPU")


def report(candidates: Sequence[Figures], args: argparse.Namespace) -> str:
    """The figures as a table; ratios are to the reference, or to the last candidate."""
    base = next((c for c in candidates if c.name == "reference"), candidates[-1])
    lines = [", ".join(f"{key} {value}" for key, value in setting(args).items()), ""]
    lines += [
        f"| network | type | params | MACs | median | 10 % to 90 % | of {base.name} | of limit | "
        f"peak | kept |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in candidates:
        ordered = sorted(c.times)
        low, high = ordered[len(ordered) // 10], ordered[-1 - len(ordered) // 10]
        cells = [
            c.name,
            c.dtype,
            f"{c.params / 1e6:.1f} M",
            f"{c.macs / 1e9:.1f} G",
            f"{c.median:.0f} ms",
            f"{low:.0f} to {high:.0f} ms",
            f"{c.median / base.median:.2f}",
            f"{c.median / c.limit:.2f}",
            f"{c.peak / 1e6:.0f} MB" if c.peak else "-",
            f"{c.kept / 1e6:.1f} MB" if c.kept else "-",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def report_kinds(candidates: Sequence[Figures]) -> str:
    """Milliseconds of each kind of operation as a table."""
    lines = ["", f"| operations | {' | '.join(c.name for c in candidates)} |"]
    lines.append("|---" * (1 + len(candidates)) + "|")
    for kind in KINDS:
        times = (f"{c.kinds[kind]:.0f} ms" for c in candidates)
        lines.append(f"| {kind} | {' | '.join(times)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main)
