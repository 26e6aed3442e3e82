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
from torch.utils.flop_counter import FlopCounterMode

from ..errors import UserError
from ..fuse import fuse
from ..hire_mlp import HireMLPNet
from ..lean import LeanBlock, RecomputedBlock
from .meters import kept_bytes, peak_bytes
from .reference_net import ReferenceNet

DTYPES = ("float32", "bfloat16", "float16")
FORMS = ("plain", "fused")
OPTIONS = ("cp", "channels_last", "compile")
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
        train: time forward and backward, in float32, and not inference.
        runs: of each candidate, timed.
        device: such as `cpu` or `cuda`.
        threads: of the CPU.
        profile: tell which operations take time, too.
    """

    arch: str = "small"
    size: tuple[int, int] = (512, 512)
    batch: int = 1
    train: bool = False
    runs: int = 10
    device: str = "cpu"
    threads: int = field(default_factory=torch.get_num_threads)
    profile: bool = False


@dataclass
class Figures:
    """Hold what was measured of a candidate. Times are in milliseconds, sizes in bytes."""

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
        """Return the median of the times."""
        return statistics.median(self.times)


def parse_name(name: str, train: bool) -> tuple[str, list[str], str]:
    """Split a candidate's name, such as `plain+cp:float32`: form or peer, options, type.

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
    """Build a network with random weights, and measure what can be measured of it."""

    def __init__(self, name: str, settings: Settings) -> None:
        form, options, dtype = parse_name(name, settings.train)
        torch.set_num_threads(settings.threads)
        torch.manual_seed(0)
        self.train, self.options, self.device = settings.train, options, settings.device
        self.dtype: torch.dtype = getattr(torch, dtype)
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
        if "compile" in options:
            from ..engine.backbones import compile_blocks

            compile_blocks(self.model)

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
            with torch.inference_mode():
                self.model(image)
            return
        self.model.zero_grad(set_to_none=True)
        torch.stack([out.square().mean() for out in self.model(image)]).sum().backward()

    def measure(self) -> Figures:
        """Measure everything but the times."""
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
        """Count work and bytes of a network, which is not run; that would leave memory behind."""
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        with fake, FlopCounterMode(display=False) as counter, torch.no_grad():
            outputs = network(fake.from_tensor(self.image))
        moved = [self.image, *outputs, *network.parameters()]
        passes = 3 if self.train else 1  # the gradients of input and weight are two more
        self.figures.macs = passes * counter.get_total_flops() // 2
        self.figures.moved = passes * sum(x.numel() * x.element_size() for x in moved)


def build_peer(name: str) -> nn.Module:
    """Build another backbone, without weights."""
    from mmengine.registry import MODELS, DefaultScope

    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(PEERS[name])


@contextmanager
def compiler(options: list[str]) -> Iterator[None]:
    """Set torch's compiler while blocks run that are compiled."""
    context: Any = nullcontext()
    if "compile" in options:
        from ..engine.backbones import compiling

        context = compiling()
    with context:
        yield
