"""List the published weights of Hire-MLP and download files. Only torch is imported here."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from http.client import HTTPException
from urllib.parse import urlparse

import torch

from .errors import CheckpointError, first_line

SCHEME = "hire-mlp://"
RELEASE = "https://github.com/ggjy/Hire-Wave-MLP.pytorch/releases/download/log"


@dataclass(frozen=True)
class Weights:
    """Describe one published weight file.

    Attributes:
        arch: name in `ARCHS`.
        url: of the file.
        source: who published it, and where its figures stand.
        licence: of the file, as its publisher states it.
        top1: single-crop accuracy on ImageNet-1K val in per cent, as published.
        image_size: of training and evaluation, in pixels.
        sha256: of the file, in hexadecimal, where its publisher states it.
    """

    arch: str
    url: str
    source: str
    licence: str
    top1: float
    image_size: int = 224
    sha256: str | None = None


# The authors' release, which has no weights of Large.
README = "README of github.com/ggjy/Hire-Wave-MLP.pytorch"
WEIGHTS = {
    arch: Weights(arch, f"{RELEASE}/hire_mlp_{arch}.pth", README, "MIT", top1)
    for arch, top1 in dict(tiny=79.7, small=82.1, base=83.2).items()
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


def locate(source: str) -> tuple[str, str | None]:
    """Find URL and digest of published weights by their name; other sources stay as they are."""
    if not source.startswith(SCHEME):
        return source, None
    record = resolve(source)
    return record.url, record.sha256


def is_url(source: str) -> bool:
    """Tell whether a weight file is to be downloaded."""
    return urlparse(source).scheme in ("http", "https")


def fetch(source: str) -> str:
    """Return a local path; the file of a URL is downloaded unless it has been before."""
    if not is_url(source):
        return os.path.expanduser(source)
    path = cached_path(source)
    if not os.path.exists(path):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # Writes beside `path` and renames, so that an interrupted download leaves nothing,
            # and processes that download side by side do not disturb each other.
            torch.hub.download_url_to_file(source, path, progress=False)
        except (OSError, HTTPException) as error:
            raise CheckpointError(
                f"cannot download {source} ({first_line(error)}); download it by hand to {path}, "
                f"or begin with random weights: no load_weights(), in a config "
                f"model.backbone.init_cfg=None"
            ) from None
    return path


def cached_path(url: str) -> str:
    """Name the file in torch hub's checkpoint folder that holds what was downloaded from a URL."""
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    name = os.path.basename(urlparse(url).path)
    return os.path.join(torch.hub.get_dir(), "checkpoints", f"{digest}-{name}")


def digest_in(source: str) -> str | None:
    """Find the digest in a URL's file name, as torch hub has it: `name-1a2b3c4d.pth`."""
    found = re.search(r"-([0-9a-f]{8,64})\.[^./]*$", urlparse(source).path)
    # Digits alone are a date.
    return found[1] if is_url(source) and found and not found[1].isdigit() else None


def check_digest(path: str, expected: str | None) -> None:
    """Raise CheckpointError unless a file's SHA-256 begins with the digits that are expected."""
    if expected is None or not os.path.isfile(path):
        return
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if not digest.hexdigest().startswith(expected.lower()):
        raise CheckpointError(
            f"{path} is not read: its SHA-256 is {digest.hexdigest()}, expected {expected}; it is "
            f"damaged or another file, so get it again"
        )
