"""Read a safetensors file: tensors by name, with nothing in it that could run.

Torch is imported here, and the safetensors library when there is such a file to read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .errors import CheckpointError, describe


def is_safetensors(head: bytes, size: int) -> bool:
    """Recognize a safetensors file of `size` bytes by its beginning.

    That is the length of a header, in eight bytes, and the header, in JSON.
    """
    return head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8


def read_safetensors(path: str, device: Any = "cpu") -> dict[str, Tensor]:
    """Read the tensors of a file; on the CPU they stay in the file until they are used.

    Of the kinds of `map_location`, a function or a table of devices leaves them on the CPU: those
    are for storages as torch saves them.
    """
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise CheckpointError(
            f"{path} cannot be read: it is a safetensors file, and the library for those is "
            f"missing; pip install safetensors"
        ) from error
    target = str(device) if isinstance(device, str | torch.device) else "cpu"
    try:
        with safe_open(path, framework="pt", device=target) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 not a dict
    except Exception as error:  # the library's own kind, and torch's
        raise CheckpointError(
            f"{path} cannot be read: it is a damaged safetensors file ({describe(error)}); get "
            f"the file again"
        ) from error
