"""Read a weight file as data: such files come from strangers.

Nothing that a torch file names is run, however the file is packed. A safetensors file is left to
its own library. A file that is damaged or of another kind is an error of one line that says so.

Only torch is imported here.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import IO, Any, NamedTuple

import torch

from .allowed import can_read_data, entries
from .errors import CheckpointError, first_line, short
from .safetensors_file import is_safetensors, read_safetensors

# How torch's older format begins: a pickled number.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# The pickles of such a file: that number, a version, the system, what was saved, the storages.
LEGACY_PICKLES = 5

# A pickle may nest tuples, or refer to one many times, so that hashing it as a key takes the
# interpreter's whole stack, or forever.
MOST_DEPTH = 1000
MOST_SHARED = 10_000_000


def load_data(path: str, device: Any = "cpu", mapped: bool = False) -> object:
    """Read the content of a weight file, which may name torch's classes and those of `allowed`.

    Args:
        path: of the file.
        device: where tensors go: a `map_location`.
        mapped: leave tensors in the file until they are used; it must stay as it is meanwhile.

    Raises:
        FileNotFoundError: no file there.
        CheckpointError: no weight file, a damaged one, or one that would run code.
    """
    if os.path.isdir(path):
        raise CheckpointError(f"{path} is a folder; expected a weight file (.pth)")
    if not os.path.exists(path):
        raise FileNotFoundError(f"weight file {path} not found")
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if is_safetensors(head, os.path.getsize(path)):
        return read_safetensors(path, device)
    if not can_read_data():
        raise CheckpointError(
            f"{path} not read: torch {torch.__version__} cannot read weights safely; "
            f"2.6 and later can"
        )
    named: list[str] = []
    # Nothing that others have allowed counts here: a name must not mean two things.
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        zipped = check_kind(path, head)
        for stream in pickles(path, zipped):
            named += check_pickle(stream)
        with torch.serialization.safe_globals(entries()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats: the errors below say it
            # `weights_only` is given, so that no setting of the environment turns it off.
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped and zipped)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle can make its reader raise anything
        raise CheckpointError(f"{path} {what_failed(error, named)}") from error
    finally:
        torch.serialization.add_safe_globals(others)


def what_failed(error: Exception, named: Sequence[str]) -> str:
    """Put torch's error into a line, without its advice to read the file unsafely."""
    if isinstance(error, pickle.UnpicklingError):
        # Torch does not follow every form of pickle far enough to name what it refuses.
        found = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        odd = (n for n in named if not n.startswith(("torch.", "collections.", "_codecs.")))
        if code := found[1] if found else short(next(odd, "")):
            return (
                f"refused: reading it would run code ({code}); "
                f"get the weights from a source you trust, saved as plain tensors"
            )
    if "Unsupported operand " in str(error):
        return (
            "cannot be read: its pickle is of a protocol that torch reads by running code, or "
            "damaged; expected torch.save's own (2)"
        )
    said = first_line(Exception(str(error).rpartition("WeightsUnpickler error:")[2]))
    return f"cannot be read: it is damaged, or no torch file ({type(error).__name__}: {said})"


# Kinds of file ----------------------------------------------------------------------------------


def check_kind(path: str, head: bytes) -> bool:
    """Tell torch's zip archives from its older format by the beginning; refuse all other files."""
    if head.startswith(b"PK"):
        check_archive(path)
        return True
    if head.startswith(LEGACY):
        return False
    if not head:
        raise CheckpointError("it is empty")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise CheckpointError("it is a web page; the download went wrong")
    if head.isascii() and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        text = short(head.decode().strip(), 40)
        raise CheckpointError(f"it is text that begins with {text!r}")
    raise CheckpointError("it is no torch file, or its beginning is damaged")


def check_archive(path: str) -> None:
    """Raise CheckpointError unless a zip archive is whole and torch's; torch checks none of it."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError("it is cut short; get the whole file again")
    with zipfile.ZipFile(path) as archive:
        files = archive.infolist()
        names = [file.filename for file in files]
        if not any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in names):
            held = ", ".join(short(name, 40) for name in names[:3]) or "nothing"
            raise CheckpointError(f"it is a zip archive of something else (it holds {held})")
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                "it is a TorchScript program; make weights of it where it is trusted, with "
                "torch.save(torch.jit.load(FILE).state_dict(), NEW)"
            )
        if len(set(names)) < len(names):
            raise CheckpointError("it is damaged: two entries of its archive have one name")
        packed = any(file.compress_type != zipfile.ZIP_STORED for file in files)
        if packed or sum(file.file_size for file in files) > os.path.getsize(path):
            raise CheckpointError(
                "its archive is compressed or overlaps itself, which torch never writes; unpack it "
                "where it is trusted, and pack it without compression (zip -0)"
            )
        for file in files:
            if not file.CRC:  # torch.save can be told to leave them out
                continue
            try:
                with archive.open(file) as stream:
                    while stream.read(1 << 20):  # to the end, where the checksum is compared
                        pass
            except zipfile.BadZipFile as error:
                name = short(file.filename, 40)
                raise CheckpointError(
                    f"it is damaged: {name} in it fails its checksum; get the file again"
                ) from error


# Pickles ----------------------------------------------------------------------------------------


def pickles(path: str, zipped: bool) -> Iterator[IO[bytes]]:
    """Yield the pickles of a torch file, each as a stream that stands at its beginning."""
    if zipped:
        # By torch's own reader, so that this is the pickle that will be read.
        yield io.BytesIO(torch._C.PyTorchFileReader(path).get_record("data.pkl"))
        return
    with open(path, "rb") as file:
        for _ in range(LEGACY_PICKLES):
            yield file


class Item(NamedTuple):
    """Describe an item on a pickle's stack: how deep and large it is to hash, and its text."""

    depth: int = 0
    size: int = 1
    text: str = ""


MARK = Item(depth=-1)


def check_pickle(stream: IO[bytes]) -> list[str]:
    """List the classes and functions that a pickle names, without building anything.

    Raises:
        CheckpointError: to build it would take the interpreter's stack, time or memory.
    """
    named: list[str] = []
    stack: list[Item] = []
    memo: dict[int, Item] = {}
    shared = 0
    arg: Any
    for opcode, arg, _ in pickletools.genops(stream):
        name = opcode.name
        if name == "MARK":
            stack.append(MARK)
        elif name.endswith("PUT"):
            memo[arg] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name.endswith("GET"):
            stack.append(memo[arg])
            shared += memo[arg].size
        else:
            taken = take(stack, opcode)
            made = Item(text=arg if isinstance(arg, str) else "")
            if name == "STACK_GLOBAL":
                named.append(f"{taken[1].text}.{taken[0].text}")
            elif name in ("GLOBAL", "INST"):
                named.append(made.text.replace(" ", "."))
            elif name.startswith("TUPLE") and taken:
                depth = 1 + max(item.depth for item in taken)
                made = Item(depth, 1 + sum(item.size for item in taken))
            stack += [made] * len(opcode.stack_after)
        if shared > MOST_SHARED or (stack and stack[-1].depth > MOST_DEPTH):
            raise CheckpointError("its pickle is nested beyond what any weights need")
    if any(name.endswith(".bytearray") for name in named):
        raise CheckpointError("it asks for memory by bytearray, which no weights need")
    return named


def take(stack: list[Item], opcode: pickletools.OpcodeInfo) -> list[Item]:
    """Pop from a pickle's stack what an opcode takes: a number of items, or all down to a mark."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        return [stack.pop() for _ in before]
    taken = []
    while (top := stack.pop()) is not MARK:
        taken.append(top)
    for _ in range(before.index(pickletools.markobject)):
        stack.pop()
    return taken
