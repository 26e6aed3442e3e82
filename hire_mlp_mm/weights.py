"""Published weights of Hire-MLP: where they are and what is said of them.

Only the standard library is imported here. `checkpoint.load_weights` loads them.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import CheckpointError

SCHEME = "hire-mlp://"
RELEASE = "https://github.com/ggjy/Hire-Wave-MLP.pytorch/releases/download/log"


@dataclass(frozen=True)
class Weights:
    """One published weight file.

    Attributes:
        arch: name in `ARCHS`.
        url: of the file.
        source: who published it, and where its figures stand.
        licence: of the file, as its publisher states it.
        top1: single-crop accuracy on ImageNet-1K val in per cent, as published.
        image_size: of training and evaluation, in pixels.
        sha256: of the file, in hexadecimal, where its publisher states it; compared before the
            file is read.
    """

    arch: str
    url: str
    source: str
    licence: str
    top1: float
    image_size: int = 224
    sha256: str | None = None


def official(arch: str, top1: float) -> Weights:
    """A record of the authors' release."""
    return Weights(
        arch=arch,
        url=f"{RELEASE}/hire_mlp_{arch}.pth",
        source="README of github.com/ggjy/Hire-Wave-MLP.pytorch",
        licence="MIT",
        top1=top1,
    )


# The authors released no weights of Large.
WEIGHTS = {
    "tiny": official("tiny", 79.7),
    "small": official("small", 82.1),
    "base": official("base", 83.2),
}


def resolve(name: str) -> Weights:
    """Return the record of `hire-mlp://NAME`.

    Raises:
        CheckpointError: no weights of that name were published.
    """
    key = name.removeprefix(SCHEME)
    if key not in WEIGHTS:
        known = ", ".join(SCHEME + known for known in WEIGHTS)
        raise CheckpointError(
            f"{SCHEME}{key}: no such weights were published (there are {known}); give the path "
            f"of a file of your own, or train from scratch with init_cfg=None"
        )
    return WEIGHTS[key]
