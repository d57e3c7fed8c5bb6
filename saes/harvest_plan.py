"""What goes into which window, batch and shard, decided from lengths alone.

A harvest is cut into blocks of consecutive clips, and each block becomes one shard, whichever process works on it and
however often it was interrupted. Windows and batches are made within a block, so that the activations are the same
bytes every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hooked_whisper.audio import SAMPLE_RATE, SAMPLES_PER_FRAME

# Run-time checking of options is ours, because its message says more than a type checker's.
if TYPE_CHECKING:
    Packing = Literal["none", "windows"]
    WindowLength = Literal["full", "true_length"]
    TextFrom = Literal["corpus", "own"]
    StoreDType = Literal["float16", "bfloat16", "float32"]
else:
    Packing = WindowLength = TextFrom = StoreDType = str

MAX_BLOCK_SECONDS = 3600.0  # of audio, which is in memory while a block is worked on: 230 MB
STEP = 25  # frames: with window="true_length" a window ends at the next half second


@dataclass(frozen=True)
class Piece:
    """The part of a clip that goes into one window.

    Attributes:
        clip: which clip of the block.
        start: where it begins in the clip, in samples.
        n_samples: how long it is.
        place: the frame of the window at which it begins.
    """

    clip: int
    start: int
    n_samples: int
    place: int = 0

    @property
    def n_frames(self) -> int:
        """Encoder frames that hold audio of it."""
        return -(-self.n_samples // SAMPLES_PER_FRAME)


@dataclass
class Window:
    """What the model is given as one clip."""

    pieces: list[Piece] = field(default_factory=list)

    @property
    def n_frames(self) -> int:
        """Frames up to the end of the last piece."""
        return self.pieces[-1].place + self.pieces[-1].n_frames


def cut(lengths: Sequence[int], window_frames: int) -> list[Piece]:
    """Clips cut into consecutive pieces of at most a window; a clip without samples has none."""
    window = window_frames * SAMPLES_PER_FRAME
    return [
        Piece(clip, start, min(window, length - start))
        for clip, length in enumerate(lengths)
        for start in range(0, length, window)
    ]


def into_windows(pieces: Sequence[Piece], window_frames: int, packing: Packing) -> list[Window]:
    """A window for each piece, or as many pieces in a window as fit: each goes into the first that has room.

    Pieces begin at whole frames, so that no frame belongs to two of them.
    """
    windows: list[Window] = []
    if packing == "none":
        return [Window([piece]) for piece in pieces]
    room: list[int] = []
    for piece in pieces:
        index = next((i for i, free in enumerate(room) if free >= piece.n_frames), len(windows))
        if index == len(windows):
            windows.append(Window())
            room.append(window_frames)
        place = window_frames - room[index]
        windows[index].pieces.append(Piece(piece.clip, piece.start, piece.n_samples, place))
        room[index] -= piece.n_frames
    return windows


def into_batches(
    windows: Sequence[Window], window_frames: int, batch_size: int, length: WindowLength
) -> list[tuple[int, list[Window]]]:
    """Batches, each with the frames of its windows.

    With "true_length", windows of one length go together, so that what a window's activations are does not depend on
    what else is in its batch.
    """
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        frames = window_frames if length == "full" else min(-(-window.n_frames // STEP) * STEP, window_frames)
        by_length.setdefault(frames, []).append(window)
    return [
        (frames, group[first : first + batch_size])
        for frames, group in sorted(by_length.items())
        for first in range(0, len(group), batch_size)
    ]


def into_blocks(seconds: Sequence[float], rows: Sequence[float], shard_rows: int) -> list[tuple[int, int]]:
    """Ranges [start, stop) of clips that become one shard each: about `shard_rows` rows, at most an hour of audio.

    A clip that is longer than that is a block of its own.

    Args:
        seconds: how long each clip is, roughly.
        rows: how many rows each clip will have, roughly.
        shard_rows: rows of a shard.
    """
    blocks, first, length, size = [], 0, 0.0, 0.0
    for index, (more_seconds, more_rows) in enumerate(zip(seconds, rows, strict=True)):
        if index > first and (size + more_rows > shard_rows or length + more_seconds > MAX_BLOCK_SECONDS):
            blocks.append((first, index))
            first, length, size = index, 0.0, 0.0
        length, size = length + more_seconds, size + more_rows
    return [*blocks, (first, len(seconds))]


def cost(seconds: Sequence[float], window_frames: int, packing: Packing, length: WindowLength) -> int:
    """Frames that the encoder is given for a block's clips, by how long they are, roughly."""
    pieces = cut([round(one * SAMPLE_RATE) for one in seconds], window_frames)
    batches = into_batches(into_windows(pieces, window_frames, packing), window_frames, 1, length)
    return sum(frames for frames, _ in batches)


def shared_out(costs: Sequence[float], n_processes: int) -> list[list[int]]:
    """Blocks of each process, in order: each block, from the dearest on, goes to the one that has least to do."""
    load, blocks = [0.0] * n_processes, [[] for _ in range(n_processes)]
    for block in sorted(range(len(costs)), key=lambda block: -costs[block]):
        least = load.index(min(load))
        load[least] += costs[block]
        blocks[least].append(block)
    return [sorted(own) for own in blocks]
