"""Candidates of a benchmark: a network in one of its forms, or another backbone."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.amp.grad_scaler import GradScaler
from torch.utils.flop_counter import FlopCounterMode

from ..compiling import compile_blocks, compiling
from ..errors import UserError
from ..fuse import fuse
from ..hire_mlp import HireMLPNet
from ..lean import LeanBlock, RecomputedBlock
from ..memory import keep_memory
from .meters import kept_bytes, peak_bytes
from .reference_net import ReferenceNet

DTYPES = ("float32", "bfloat16", "float16")
FORMS = ("plain", "fused")
OPTIONS = ("cp", "channels_last", "compile", "graph", "keep")
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


@dataclass(frozen=True)
class Settings:
    """Hold what is the same for all candidates.

    Attributes:
        arch: of HireMLP.
        size: of the images, height and width in pixels.
        batch: how many images.
        train: time forward and backward, and not inference.
        runs: of each candidate, timed.
        device: such as `cpu` or `cuda`.
        threads: of the CPU.
        profile: tell which operations take time, too.
        config: of a whole model to measure (see `load_config`), and not a backbone alone.
        cfg_options: values by their dotted keys, put into the config.
    """

    arch: str = "small"
    size: tuple[int, int] = (512, 512)
    batch: int = 1
    train: bool = False
    runs: int = 10
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)
    profile: bool = False
    config: str | None = None
    cfg_options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Figures:
    """Hold what was measured of a candidate. Times are in milliseconds, sizes in bytes."""

    name: str
    dtype: str
    params: int = 0
    macs: int = 0
    moved: int = 0  # image, weights and outputs; not of whole models
    peak: int = 0
    kept: int = 0
    limit: float = 0.0
    times: list[float] = field(default_factory=list)
    kinds: dict[str, float] = field(default_factory=dict)  # see `KINDS`
    parts: dict[str, float] = field(default_factory=dict)  # of a whole model

    @property
    def median(self) -> float:
        """Return the median of the times."""
        return statistics.median(self.times)


def set_up(settings: Settings) -> None:
    """Have this process run as the settings say; raise UserError where there is no such device.

    On a GPU float32 is TF32, for all candidates alike: by itself torch has it for convolutions and
    not for matrix products, of which some forms have more than others.
    """
    try:
        kind = torch.device(settings.device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise UserError(f"--device {settings.device}: expected cpu, cuda, or one such as cuda:1")
    torch.set_num_threads(settings.threads)
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                f"--device {settings.device}: torch {torch.__version__} finds no GPU here; "
                "--device cpu measures the processor"
            )
        torch.set_float32_matmul_precision("high")


def parse_name(name: str, settings: Settings) -> tuple[str, list[str], str]:
    """Split a candidate's name, such as `plain+cp:float32`: form or peer, options, type.

    Raises:
        UserError: an unknown name, option or type, or a form that cannot be run so.
    """
    first, _, dtype = name.partition(":")
    form, *options = first.split("+")
    dtype = dtype or "float32"
    whole = settings.config is not None
    known = (*FORMS, *PEERS) if whole else (*FORMS, "reference", *PEERS)
    if form not in known or dtype not in DTYPES or not set(options) <= set(OPTIONS):
        raise UserError(
            f"unknown {name!r}; expected {', '.join(known)}, then any of +{', +'.join(OPTIONS)}, "
            f"then one of :{', :'.join(DTYPES)}"
        )
    if settings.train and form == "fused":
        raise UserError(f"--train {name}: expected a form that trains")
    if "cp" in options and not (settings.train and (whole or form == "plain")):
        raise UserError(f"{name}: +cp is for plain, with --train")
    if "cp" in options and "compile" in options:
        raise UserError(f"{name}: +cp or +compile; blocks that recompute are not compiled")
    if "keep" in options and settings.device != "cpu":
        raise UserError(f"{name}: +keep is for a CPU")
    if "graph" in options and (settings.train or not settings.device.startswith("cuda")):
        raise UserError(f"{name}: +graph is for inference on a GPU")
    if whole and ("graph" in options or ("compile" in options and form in PEERS)):
        raise UserError(f"{name}: of whole models, +compile is for HireMLP, and +graph for none")
    return form, options, dtype


class Candidate:
    """Build a network with random weights, and measure what can be measured of it."""

    def __init__(self, name: str, settings: Settings) -> None:
        form, options, dtype = parse_name(name, settings)
        set_up(settings)
        torch.manual_seed(0)
        self.train, self.options, self.device = settings.train, options, settings.device
        self.dtype: torch.dtype = getattr(torch, dtype)
        # A training in a half type keeps its weights in float32: automatic mixed precision.
        self.amp_dtype = self.dtype if self.train and dtype != "float32" else None
        if self.amp_dtype:
            self.dtype = torch.float32
        scaled = self.amp_dtype == torch.float16
        self.scaler = GradScaler(self.device.partition(":")[0], enabled=scaled)
        model: Any
        if form in PEERS:
            model = build_peer(form)
        else:
            block = RecomputedBlock if "cp" in options else LeanBlock  # as HireMLP has them
            model = HireMLPNet(settings.arch, block=block)
        model.to(self.device, self.dtype)
        model.train(self.train)  # apart: some backbones return nothing here
        title = form if form not in FORMS else f"Hire-{settings.arch.capitalize()} {form}"
        self.figures = Figures("+".join([title, *options]), dtype)
        self.image = self.make_image(settings.batch, *settings.size)
        self.count(model)
        if form == "fused":
            model = fuse(model)
        elif form == "reference":
            model = ReferenceNet(model)
        self.model = model
        self.model.train(self.train)
        if "channels_last" in options:
            self.model.to(memory_format=torch.channels_last)
        if "compile" in options and form in FORMS:
            compile_blocks(self.model)
        elif "compile" in options:
            self.model.compile(dynamic=False)
        if "graph" in options:
            self.model = Graphed(self.model)

    def make_image(self, batch: int, height: int, width: int) -> Tensor:
        """Make a batch of random images."""
        image = torch.rand(batch, 3, height, width, device=self.device).to(self.dtype)
        last = "channels_last" in self.options
        return image.contiguous(memory_format=torch.channels_last) if last else image

    def step(self, image: Tensor) -> None:
        """Run inference, or forward and backward of the mean square of every map."""
        with compiler(self.options):
            self.run(image)

    def run(self, image: Tensor) -> None:
        """Do `step`, the compiler as it is."""
        if not self.train:
            with torch.inference_mode(), new_tensors_in(self.dtype):
                self.model(image)
            return
        self.model.zero_grad(set_to_none=True)
        with self.autocast():
            outputs = self.model(image)
        loss = torch.stack([out.float().square().mean() for out in outputs]).sum()
        self.scaler.scale(loss).backward()

    def autocast(self) -> torch.autocast:
        """Return the context of a forward pass in training."""
        kind = self.device.partition(":")[0]
        return torch.autocast(kind, self.amp_dtype, enabled=self.amp_dtype is not None)

    def measure(self) -> Figures:
        """Measure everything but the times."""
        figures = self.figures
        figures.params = sum(p.numel() for p in self.model.parameters())
        # What comes once: threads, kernels, a compiler's work, which may be for this size alone.
        small = self.make_image(len(self.image), 64, 64)
        self.step(self.image if "compile" in self.options else small)
        figures.peak = peak_bytes(lambda: self.step(self.image), self.image)
        if self.train:
            with self.autocast(), compiler(self.options):
                figures.kept = kept_bytes(self.model, self.image)
        if "keep" in self.options:
            keep_memory()
        self.step(self.image)
        return figures

    def count(self, network: nn.Module) -> None:
        """Count work and bytes of a network, which is not run; that would leave memory behind."""
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake, FlopCounterMode(display=False) as counter, torch.no_grad(), self.autocast():
            outputs = network(fake.from_tensor(self.image))
        moved = [self.image, *outputs, *network.parameters()]
        passes = 3 if self.train else 1  # the gradients of input and weight are two more
        self.figures.macs = passes * counter.get_total_flops() // 2
        self.figures.moved = passes * sum(x.numel() * x.element_size() for x in moved)


class Graphed(nn.Module):
    """Replay a network's kernels on a GPU from a CUDA graph, recorded for each size of images.

    For inference. An image overwrites the outputs of the last one of its size.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.graphs: dict[Any, Any] = {}

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        key = image.shape, image.stride(), image.dtype
        if key not in self.graphs:
            # A function: of a module torch would replace the forward, which takes one size.
            run = torch.cuda.make_graphed_callables(lambda x: self.network(x), (image.clone(),))
            self.graphs[key] = run
        return self.graphs[key](image)


@contextmanager
def new_tensors_in(dtype: torch.dtype) -> Iterator[None]:
    """Have networks make tensors in the type of their weights, as MMDetection's Swin must."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def build_peer(name: str) -> nn.Module:
    """Build another backbone, without weights."""
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(PEERS[name])


@contextmanager
def compiler(options: list[str]) -> Iterator[None]:
    """Set torch's compiler while blocks run that are compiled."""
    with compiling() if "compile" in options else nullcontext():
        yield
