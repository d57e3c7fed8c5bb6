"""Reads tensors out of files that `torch.save` wrote, without running anything that is in them.

Such a file is a zip archive with a pickle, and a pickle is a program. Two guards stand one behind the other: the
pickle's opcodes are looked through first, and only what a state dict is made of may be in there; then `torch.load`
reads it with `weights_only=True`, whose own unpickler runs nothing else either. The tensors are mapped, not read.
"""

from __future__ import annotations

import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from hooked_whisper.errors import CheckpointError

# A state dict of large-v3 takes 0.3 MB of pickle.
MAX_PICKLE_BYTES = 32 * 2**20

TORCH_PROTOCOL = 2  # of the pickle in what torch.save writes

_STORAGES = ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Short", "Char", "Byte", "Bool")
_ALLOWED_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_tensor",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "torch Size",
    "torch device",
    *(f"torch {kind}Storage" for kind in _STORAGES),
    *(f"torch {dtype}" for dtype in ("float32", "float16", "bfloat16", "float64", "int64", "int32")),
    *("torch.storage UntypedStorage", "torch.storage TypedStorage"),
}
# How a pickle names code other than by GLOBAL; `torch.save` writes none of these.
_FORBIDDEN_OPCODES = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4"}

# What torch's unpickler raises on bytes that make no sense: whatever the step fails with that they lead it to.
_MALFORMED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def load_torch_file(path: Path) -> Any:
    """The object in a file of `torch.save`, tensors on the CPU and mapped.

    Raises:
        CheckpointError: missing, truncated or corrupt, in the format that torch wrote before 1.6, or with anything
            in it that is not a state dict's.
    """
    _check_archive(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except _MALFORMED as error:
        raise CheckpointError(f"{path} is corrupt, or holds more than tensors: {error}") from error


def _check_archive(path: Path) -> None:
    """The archive must be what torch writes: stored, not compressed, and a pickle of tensors only."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            names = [entry.filename for entry in entries]
            n_bytes = sum(entry.file_size for entry in entries)
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if len(set(names)) != len(names) or len(pickles) != 1 or not names:
                raise CheckpointError(
                    f"{path} is no file of tensors: expected one data.pkl and each name once, found "
                    f"{len(pickles)} pickles in {len(names)} entries."
                )
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or n_bytes > path.stat().st_size:
                raise CheckpointError(f"{path} is compressed, which torch.save never does: save it again.")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path} holds a pickle of {pickles[0].file_size:,} bytes, expected at most {MAX_PICKLE_BYTES:,}."
                )
            program = archive.read(pickles[0])
    except FileNotFoundError as error:
        raise CheckpointError(f"There is no file {path}.") from error
    except CheckpointError:
        raise
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
        ValueError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"{path} is no file that torch.save writes ({error}): it is truncated or corrupt, of another format, or "
            "older than torch 1.6 (load it with torch there and save it again)."
        ) from error
    _check_pickle(program, path)


def _check_pickle(program: bytes, path: Path) -> None:
    """Refuses a pickle that names anything but tensors and containers."""
    try:
        opcodes = [(opcode.name, argument) for opcode, argument, _ in pickletools.genops(program)]
    except (ValueError, IndexError, OverflowError) as error:
        raise CheckpointError(f"{path} is corrupt: its pickle cannot be read ({error}).") from error
    for opcode, argument in opcodes:
        if opcode in _FORBIDDEN_OPCODES or (opcode == "GLOBAL" and argument not in _ALLOWED_GLOBALS):
            named = str(argument).replace(" ", ".") if argument else opcode
            raise CheckpointError(
                f"{path} holds code or objects ({named}), not only tensors, and was not loaded. If you trust where "
                "it comes from, load it with torch yourself and save its state dict alone."
            )
        if opcode == "PROTO" and argument != TORCH_PROTOCOL:
            raise CheckpointError(f"{path} has a pickle of protocol {argument}, expected {TORCH_PROTOCOL}.")
