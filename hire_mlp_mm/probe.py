"""Import what recipes need, for `doctor.py`, in a process that may fail; a line for each result.

python probe.py JSON_OF_SYS_PATH FOLDER_OF_THE_PACKAGE
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

ORDER = ("torch", "torchvision", "cv2", "mmengine", "mmcv", "mmdet", "mmseg", "mmpretrain")
MODULES = {"mmdet": "mmdet.models", "mmseg": "mmseg.models", "mmpretrain": "mmpretrain.models"}


def tell(**result: Any) -> None:
    """Write a result in a line of its own."""
    sys.stdout.write(f"\nPROBE {json.dumps(result)}\n")
    sys.stdout.flush()


def main() -> None:
    """Import one package after the other."""
    # The path of the process that asked: the folder of this file has modules of our package.
    sys.path[:] = [*json.loads(sys.argv[1]), sys.argv[2]]
    for name in ORDER:
        tell(begun=name)
        try:
            if name == "mmengine":  # before mmcv's ops are asked for
                importlib.import_module(name)
                importlib.import_module("hire_mlp_mm.backbone")
            module = importlib.import_module(MODULES.get(name, name))
            result = dict(device=device(module)) if name == "torch" else {}
        except Exception as error:  # an assertion about versions, a library that is not there
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                continue
            result = dict(error=line(error))
        tell(**{name: result})
    tell(begun="")
    for work in (ops, weights):
        with contextlib.suppress(Exception):  # of an import that has failed above
            work()


def line(error: Exception) -> str:
    """Cut an error to its first line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}" if text else type(error).__name__


def device(torch: Any) -> str:
    """Name what torch computes on."""
    if torch.cuda.is_available():
        more = torch.cuda.device_count() - 1
        return torch.cuda.get_device_name(0) + (f" and {more} more" if more else "")
    threads = torch.get_num_threads()
    return f"no GPU, {threads} {'thread' if threads == 1 else 'threads'}"


def ops() -> None:
    """Tell which ops of mmcv are compiled, stood in for, or missing."""
    import mmcv

    from hire_mlp_mm import mmcv_ops

    ext = importlib.import_module("mmcv._ext")
    asked = sorted(set(asked_for(mmcv)))
    stands_in = isinstance(ext, mmcv_ops.StandIn)
    held = [name for name in asked if name in (mmcv_ops.OPS if stands_in else dir(ext))]
    held = [name for name in held if not name.startswith("get_comp")]  # which report on a compiler
    missing = [name for name in asked if name not in (*held, *mmcv_ops.OPS)]
    compiled, stood_in = ([], held) if stands_in else (held, [])
    tell(ops=dict(compiled=compiled, stood_in=stood_in, missing=missing))


def asked_for(mmcv: ModuleType) -> Iterator[str]:
    """Yield the names that the files of `mmcv.ops` load from the compiled module."""
    for path in Path(mmcv.__path__[0], "ops").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_ext":
                yield from ast.literal_eval(node.args[1])


def weights() -> None:
    """Tell which published weights are in the cache."""
    from hire_mlp_mm.weights import WEIGHTS, cached_path

    paths = {name: cached_path(record.url) for name, record in WEIGHTS.items()}
    tell(weights={k: dict(path=path, found=os.path.exists(path)) for k, path in paths.items()})


if __name__ == "__main__":
    main()
