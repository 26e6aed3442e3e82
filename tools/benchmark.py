"""Time, memory and work of HireMLP and its inference form, side by side with other backbones.

    python tools/benchmark.py --size 512x512 --against reference swin-t
    python tools/benchmark.py --train --size 512x512 --forms plain plain+cp

All candidates run in turn, again and again, so that a busy machine slows all of them; the ratios of
the medians are the figures to quote. A form is `plain`, `plain+cp` (blocks recomputed in the
backward pass) or `fused`, with a type after a colon where it is not float32: `fused:bfloat16`.

The limit is the time that the machine needs at least: the network's multiply-adds at the rate of a
large matrix product in the same type, or its image, weights and outputs at the rate of a copy.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _common import UserError, run
from mmengine.registry import MODELS, DefaultScope
from reference_net import ReferenceNet
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hire_mlp_mm import HireMLP
from hire_mlp_mm.fuse import fuse
from hire_mlp_mm.hire_mlp import ARCHS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FORMS = ("plain", "plain+cp", "fused")
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
class Candidate:
    """A network to measure, and what was measured. Times are in milliseconds, sizes in bytes."""

    name: str
    dtype: str
    model: nn.Module
    counted: nn.Module  # the network whose work is counted: of a fused one, the one before
    params: int = 0
    macs: int = 0
    peak: int = 0
    kept: int = 0
    limit: float = 0.0
    times: list[float] = field(default_factory=list)

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
    parser.add_argument("--json", metavar="FILE", help="write the figures to a new file")
    args = parser.parse_args()
    if args.json and Path(args.json).exists():
        raise UserError(f"{args.json} exists; name another file with --json")
    torch.set_num_threads(args.threads)
    height, width = parse_size(args.size)
    image = torch.rand(args.batch, 3, height, width, device=args.device)
    candidates = [make(name, args) for name in (*args.forms, *args.against)]
    action = train_step if args.train else infer
    measure(candidates, image, action, args.runs)
    print(report(candidates, args))
    if args.json:
        figures = [
            {k: v for k, v in vars(c).items() if k not in ("model", "counted")}
            | dict(median=c.median)
            for c in candidates
        ]
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


def make(name: str, args: argparse.Namespace) -> Candidate:
    """Build a candidate from its name, with random weights.

    Raises:
        UserError: an unknown name or type, or a form that cannot be trained.
    """
    form, _, dtype = name.partition(":")
    dtype = dtype or "float32"
    known = (*FORMS, "reference", *PEERS)
    if form not in known or dtype not in DTYPES:
        raise UserError(
            f"unknown {name!r}; expected {', '.join(known)}, with :{' or :'.join(DTYPES)} behind"
        )
    if args.train and (form == "fused" or dtype != "float32"):
        raise UserError(f"--train {name}: expected a form that trains, in float32")
    torch.manual_seed(0)
    if form in PEERS:
        with DefaultScope.overwrite_default_scope("mmdet"):
            model = MODELS.build(PEERS[form])
    else:
        model = HireMLP(args.arch, with_cp=form == "plain+cp")
    counted = model.to(args.device, DTYPES[dtype])
    counted.train(args.train)  # apart: some backbones return nothing here
    if form == "fused":
        model = fuse(model)
    elif form == "reference":
        model = ReferenceNet(model)
    if form not in ("reference", *PEERS):
        form = f"Hire-{args.arch.capitalize()} {form}"
    model.train(args.train)
    params = sum(p.numel() for p in model.parameters())
    return Candidate(form, dtype, model, counted, params)


# Measuring ---------------------------------------------------------------------------------------


def infer(model: nn.Module, image: Tensor) -> None:
    with torch.inference_mode():
        model(image)


def train_step(model: nn.Module, image: Tensor) -> None:
    """Forward and backward of the mean square of every map."""
    model.zero_grad(set_to_none=True)
    torch.stack([out.square().mean() for out in model(image)]).sum().backward()


def measure(
    candidates: Sequence[Candidate],
    image: Tensor,
    action: Callable[[nn.Module, Tensor], None],
    runs: int,
) -> None:
    """Fill in the figures of every candidate; the timed runs take turns."""
    for candidate in candidates:
        own = image.to(DTYPES[candidate.dtype])
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = candidate.counted(own)
        candidate.macs = counter.get_total_flops() // 2
        moved = [own, *outputs, *candidate.counted.parameters()]
        candidate.limit = limit(candidate, sum(x.numel() * x.element_size() for x in moved), own)
        action(candidate.model, own)  # warm, before the memory is looked at
        if action is train_step:
            candidate.kept = kept_bytes(candidate.model, own)
            candidate.limit *= 3  # the gradients of input and weight are two more products
        candidate.peak = peak_bytes(lambda c=candidate, x=own: action(c.model, x), own)
    for _ in range(runs):
        for candidate in candidates:
            own = image.to(DTYPES[candidate.dtype])
            candidate.times.append(timed(lambda c=candidate, x=own: action(c.model, x), own))


def timed(work: Callable[[], None], where: Tensor) -> float:
    """Milliseconds of wall time."""
    wait_for(where)
    start = time.perf_counter()
    work()
    wait_for(where)
    return (time.perf_counter() - start) * 1e3


def wait_for(where: Tensor) -> None:
    """Let a GPU finish what it was given."""
    if where.is_cuda:
        torch.cuda.synchronize(where.device)


def limit(candidate: Candidate, moved: int, like: Tensor) -> float:
    """Milliseconds that the multiply-adds, or the bytes that must move, take at the peak rate."""
    n = 4096 if like.is_cuda else 1024
    a, b = torch.rand(2, n, n, device=like.device).to(like.dtype)
    product = min(timed(lambda: torch.mm(a, b), like) for _ in range(10)) / n**3
    source = torch.empty(2**26, dtype=torch.uint8, device=like.device)
    target = torch.empty_like(source)
    copy = min(timed(lambda: target.copy_(source), like) for _ in range(10)) / source.numel()
    return max(candidate.macs * product, moved * copy)


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
    """Memory of a GPU at the highest point of some work, beyond what was taken; 0 on a CPU."""
    if not where.is_cuda:  # where freed memory stays with the allocator, so that nobody can tell
        return 0
    torch.cuda.reset_peak_memory_stats(where.device)
    before = torch.cuda.memory_allocated(where.device)
    work()
    return torch.cuda.max_memory_allocated(where.device) - before


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


def report(candidates: Sequence[Candidate], args: argparse.Namespace) -> str:
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


if __name__ == "__main__":
    run(main)
