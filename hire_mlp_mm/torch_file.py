"""Read a weight file as data: such files come from strangers.

Nothing that a torch file names is run, however it is packed. A safetensors file is read, too, by
its own library. A file that is damaged or of another kind is an error of one line that says what
the file is.

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
from .errors import CheckpointError as CheckpointError  # ours, too
from .errors import first_line, short
from .safetensors_file import is_safetensors, read_safetensors

# How torch's older format begins: a pickled number.
LEGACY = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
# The pickles of such a file: that number, a version, the system, what was saved, the storages.
LEGACY_PICKLES = 5

# A pickle may nest tuples, and refer to one many times, so that hashing a name in it takes the
# interpreter's whole stack, or forever.
MOST_DEPTH = 1000
MOST_SHARED = 10_000_000


def load_data(path: str, device: Any = "cpu", mapped: bool = False) -> object:
    """Read what a weight file holds, as data.

    Besides torch's own classes and functions, a file may name those of `allowed.TABLE`.

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
    if is_safetensors(read_head(path), os.path.getsize(path)):
        return read_safetensors(path, device)
    if not can_read_data():
        raise CheckpointError(
            f"{path} not read: torch {torch.__version__} cannot read weights safely; "
            f"2.6 and later can"
        )
    return load_torch_file(path, device, mapped)


def read_head(path: str) -> bytes:
    """Read the beginning of a file.

    Raises:
        CheckpointError: the file cannot be opened.
    """
    try:
        with open(path, "rb") as file:
            return file.read(512)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def load_torch_file(path: str, device: Any, mapped: bool) -> object:
    """Read what a torch file holds; see `load_data`."""
    found: list[str] = []
    # What others have allowed stays outside: a name must not mean two things.
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        zipped = check_kind(path)
        for stream in pickles(path, zipped):
            found += check_pickle(stream)
        with torch.serialization.safe_globals(entries()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats: the errors below say it
            # Said outright, so that no setting of the environment turns it off.
            return torch.load(path, map_location=device, weights_only=True, mmap=mapped and zipped)
    except CheckpointError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle can make its reader raise anything
        code = would_run(error, found)
        if code:
            raise CheckpointError(
                f"{path} refused: reading it would run code ({code}); "
                f"get the weights from a source you trust, saved as plain tensors"
            ) from error
        raise CheckpointError(f"{path} cannot be read: {what_failed(error)}") from error
    finally:
        torch.serialization.add_safe_globals(others)


def would_run(error: Exception, found: Sequence[str]) -> str:
    """What a file would have run, where that is why torch refused it; else nothing."""
    if not isinstance(error, pickle.UnpicklingError):
        return ""
    named = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
    if named:
        return named[1]
    # In a form of pickle that torch doesn't follow far enough to say it.
    harmless = ("torch.", "collections.", "_codecs.")
    return next((short(name) for name in found if not name.startswith(harmless)), "")


def what_failed(error: Exception) -> str:
    """Torch's errors for people: without its advice to read the file unsafely."""
    operand = re.search(r"Unsupported operand (\d+)", str(error))
    if operand:
        return (
            "its pickle is of a protocol that torch reads by running code, or damaged; "
            "expected torch.save's own (2)"
        )
    said = Exception(str(error).rpartition("WeightsUnpickler error:")[2])
    return f"it is damaged, or no torch file ({type(error).__name__}: {first_line(said)})"


# Kinds of file ----------------------------------------------------------------------------------


def check_kind(path: str) -> bool:
    """Whether a file is torch's zip archive, and not of the older format.

    Raises:
        CheckpointError: neither, or a damaged archive; the message says what it is.
    """
    head = read_head(path)
    if head.startswith(b"PK"):
        check_archive(path)
        return True
    if head.startswith(LEGACY):
        return False
    raise CheckpointError(other_kind(head, os.path.getsize(path)))


def other_kind(head: bytes, size: int) -> str:
    """What a file is that begins with `head` and that torch did not write."""
    if not size:
        return "it is empty"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "it is a web page; the download went wrong"
    if head.isascii() and all(byte >= 32 or byte in b"\t\n\r" for byte in head):
        return f"it is text that begins with {short(head.decode().strip(), 40)!r}"
    return "it is no torch file, or its beginning is damaged"


def check_archive(path: str) -> None:
    """Look at the zip archive of a torch file; torch itself checks none of this.

    Raises:
        CheckpointError: cut short, of something else, or with a damaged entry.
    """
    if not zipfile.is_zipfile(path):
        raise CheckpointError("it is cut short; get the whole file again")
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = [entry.filename for entry in entries]
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
        packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
        if packed or sum(entry.file_size for entry in entries) > os.path.getsize(path):
            raise CheckpointError(
                "its archive is compressed or overlaps itself, which torch never writes; unpack it "
                "where it is trusted, and pack it without compression (zip -0)"
            )
        for entry in entries:
            if entry.CRC:  # torch.save can be told to leave them out
                with archive.open(entry) as stream:
                    check_entry(stream, entry.filename)


def check_entry(stream: IO[bytes], name: str) -> None:
    """Read an entry of an archive through, which compares its checksum."""
    try:
        while stream.read(1 << 20):
            pass
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"it is damaged: {short(name, 40)} in it fails its checksum; get the file again"
        ) from error


# Pickles ----------------------------------------------------------------------------------------


def pickles(path: str, zipped: bool) -> Iterator[IO[bytes]]:
    """The pickles of a torch file, each a stream that stands at its beginning."""
    if zipped:
        # By torch's own reader, so that it is the one that will be read.
        yield io.BytesIO(torch._C.PyTorchFileReader(path).get_record("data.pkl"))
        return
    with open(path, "rb") as file:
        for _ in range(LEGACY_PICKLES):
            yield file


class Item(NamedTuple):
    """Something on a pickle's stack: how deep and how large it is to hash, and its text."""

    depth: int = 0
    size: int = 1
    text: str = ""


MARK = Item(depth=-1)


def check_pickle(stream: IO[bytes]) -> list[str]:
    """Go through a pickle without building anything.

    Returns:
        The classes and functions that it names.

    Raises:
        CheckpointError: it would take the interpreter's stack, time or memory.
    """
    found: list[str] = []
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
                found.append(f"{taken[1].text}.{taken[0].text}")
            elif name in ("GLOBAL", "INST"):
                found.append(made.text.replace(" ", "."))
            elif name.startswith("TUPLE") and taken:
                depth = 1 + max(item.depth for item in taken)
                made = Item(depth, 1 + sum(item.size for item in taken))
            stack += [made] * len(opcode.stack_after)
        if shared > MOST_SHARED or (stack and stack[-1].depth > MOST_DEPTH):
            raise CheckpointError("its pickle is nested beyond what any weights need")
    if any(name.endswith(".bytearray") for name in found):
        raise CheckpointError("it asks for memory by bytearray, which no weights need")
    return found


def take(stack: list[Item], opcode: pickletools.OpcodeInfo) -> list[Item]:
    """Take from a pickle's stack what an opcode takes: a number of things, or down to the mark."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        return [stack.pop() for _ in before]
    taken = []
    while (top := stack.pop()) is not MARK:
        taken.append(top)
    for _ in range(before.index(pickletools.markobject)):
        stack.pop()
    return taken
