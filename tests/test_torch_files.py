"""Files of torch.save: tensors are read, and never a line of a stranger's code."""

from __future__ import annotations

import builtins
import io
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_files import (
    openai_content,
    random_whisper,
    saved,
)

from hooked_whisper.checkpoints import load_checkpoint
from hooked_whisper.errors import CheckpointError
from hooked_whisper.openai import read_openai
from hooked_whisper.torch_files import load_torch_file


@pytest.fixture(scope="module")
def content() -> bytes:
    """A whole small `.pt`."""
    torch.manual_seed(2)
    buffer = io.BytesIO()
    torch.save(openai_content(random_whisper()), buffer)
    return buffer.getvalue()


class Malicious:
    """Unpickled by Python's own unpickler, this makes a directory."""

    def __init__(self, proof: Path) -> None:
        self.proof = str(proof)

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (self.proof,))


@pytest.mark.parametrize("place", ["whole", "dims", "weights"])
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before torch 1.6"])
def test_code_is_never_run(tmp_path: Path, place: str, legacy: bool) -> None:
    proof = tmp_path / "ran"
    good, bad = openai_content(random_whisper()), Malicious(proof)
    content = {
        "whole": bad,
        "dims": {**good, "dims": bad},
        "weights": {**good, "model_state_dict": {"x": bad}},
    }[place]
    path = saved(content, tmp_path / "model.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"no file that torch\.save writes" if legacy else r"holds code .*mkdir"):
        load_checkpoint(path)
    assert not proof.exists()
    torch.load(path, weights_only=False)  # the file does carry the code
    assert proof.exists()


@pytest.mark.parametrize("function", [builtins.bytearray, builtins.eval, torch.zeros, os.system])
def test_functions_that_a_state_dict_does_not_need_are_refused(tmp_path: Path, function: Any) -> None:
    """bytearray among them: torch's own unpickler would allocate what the file asks for."""

    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return (function, (10**13,))

    with pytest.raises(CheckpointError, match="holds code or objects"):
        load_torch_file(saved({"x": Call()}, tmp_path / "x.pt"))


def test_another_pickle_protocol_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"protocol 4, expected 2|holds code or objects"):
        load_torch_file(saved({"x": torch.ones(2)}, tmp_path / "x.pt", pickle_protocol=4))


def test_a_storage_that_claims_more_than_it_has_is_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.arange(4.0)}, tmp_path / "x.pt")
    content = path.read_bytes()
    storage, view = b"q\x06K\x04tq\x07Q", b"K\x00K\x04\x85"
    assert content.count(storage) == content.count(view) == 1
    path.write_bytes(content.replace(storage, b"q\x06K\xfftq\x07Q").replace(view, b"K\x00K\xff\x85"))
    # The checksum of the pickle is wrong too; make it right, so that the sizes are what is refused.
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("x/data.pkl")
        program = path.read_bytes()[entry.header_offset :]
    start = program.index(b"\x80\x02")
    crc = zlib.crc32(program[start : start + entry.file_size])
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", entry.CRC), struct.pack("<I", crc)))
    with pytest.raises(CheckpointError, match="corrupt, or holds more than tensors"):
        load_torch_file(path)


def rewritten(source: bytes, path: Path, *, compression: int = zipfile.ZIP_STORED, extra: str | None = None) -> Path:
    """The same archive, written anew."""
    with zipfile.ZipFile(io.BytesIO(source)) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        if extra is not None:
            new.writestr(extra, b"\x80\x02N.")
    return path


def test_compressed_and_doubled_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(CheckpointError, match="is compressed"):
        read_openai(rewritten(content, tmp_path / "deflated.pt", compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(CheckpointError, match=r"expected one data\.pkl and each name once, found 2 pickles"):
        read_openai(rewritten(content, tmp_path / "doubled.pt", extra="archive/second.pkl"))
    read_openai(rewritten(content, tmp_path / "plain.pt"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no file"):
        load_torch_file(tmp_path / "none.pt")
