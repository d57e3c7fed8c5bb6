"""Sound files that tests make: small, different from each other, the same every time."""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def samples(seconds: float, seed: int = 0, rate: int = 16_000) -> np.ndarray:
    """Noise under a slow swell, 16-bit."""
    n = round(seconds * rate)
    noise = np.random.default_rng(seed).standard_normal(n)
    return (6_000 * noise * (0.2 + np.abs(np.sin(np.arange(n) / rate * 7)))).clip(-32_768, 32_767).astype(np.int16)


def write_wav(path: Path, seconds: float, seed: int = 0, rate: int = 16_000) -> Path:
    """A mono WAV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples(seconds, seed, rate).tobytes())
    return path


def write_manifest(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """A manifest in JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def make_corpus(folder: Path, lengths: Sequence[float], **columns: Sequence[Any]) -> Path:
    """WAV files of these lengths in seconds with a manifest; each column has a value for each file."""
    rows = []
    for index, seconds in enumerate(lengths):
        name = f"clip-{index:03d}.wav"
        write_wav(folder / name, seconds, seed=index)
        rows.append({"path": name, **{column: values[index] for column, values in columns.items()}})
    return write_manifest(folder / "manifest.jsonl", rows)
