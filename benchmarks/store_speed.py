"""How fast a store is read, against reading the same bytes from a memory map and nothing else.

    python -m benchmarks.store_speed [--rows 524288] [--width 512] [--dtype float16] [--batch-size 4096] [--rounds 15]

Every contender turns all rows into float32 batches of the same size. The bars: in order 0.9 of the raw map's speed,
shuffled 0.5. "As stored" is without the conversion to float32. One thread; ratios within one run, because machines are
noisy.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from benchmarks import report
from hooked_whisper.saes.store import ActivationStore
from hooked_whisper.saes.store_files import DTYPES, StoreSettings
from hooked_whisper.saes.store_writer import ClipRows, StoreWriter

HOOK = "encoder.hook_out"
CLIP_ROWS = 160  # of a prompt, on average


@dataclass(frozen=True)
class Speed:
    """Speeds of one contender over all rounds."""

    name: str
    gigabytes_a_second: float  # the best round
    ratio: float  # to its floor, the median over the rounds
    spread: tuple[float, float]

    def __str__(self) -> str:
        low, high = self.spread
        return f"{self.name:<28} {self.gigabytes_a_second:6.2f} GB/s   {self.ratio:5.2f} ({low:.2f} to {high:.2f})"


def make_store(folder: Path, rows: int, width: int, dtype: str, shard_rows: int) -> ActivationStore:
    """A store of random rows."""
    settings = StoreSettings("none", "0" * 64, {HOOK: width}, dtype, "frame", 50.0, {"name": "random"})
    writer = StoreWriter(folder, settings)
    for index, first in enumerate(range(0, rows, shard_rows)):
        n = min(shard_rows, rows - first)
        values = torch.randn(n, width, generator=torch.Generator().manual_seed(index)).to(DTYPES[dtype])
        clips = [ClipRows(f"{first + at}", min(CLIP_ROWS, n - at), columns={}) for at in range(0, n, CLIP_ROWS)]
        frame = np.concatenate([np.arange(clip.n_rows, dtype=np.int32) for clip in clips])
        writer.write_shard(index, {HOOK: values}, {"frame": frame}, clips)
    writer.finish(-(-rows // shard_rows))
    return ActivationStore.open(folder)


def measure(store: ActivationStore, batch_size: int, rounds: int) -> list[Speed]:
    """Every contender in turn, round after round."""
    maps = []
    for path in sorted(store.manifests[0].folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            maps.append(file.get_tensor(HOOK))

    def raw(convert: bool) -> None:
        for mapped in maps:
            for batch in mapped.split(batch_size):
                _ = batch.to(torch.float32, copy=True) if convert else batch.clone()

    def stored() -> None:
        for first in range(0, store.n_rows, batch_size):
            store.rows(HOOK, first, min(first + batch_size, store.n_rows)).clone()

    def ordered() -> None:
        for batch in store.ordered_batches(HOOK, batch_size):
            if store.dtype == torch.float32:  # mapped until it is used
                batch.clone()

    def shuffled_stored() -> None:
        for _ in store.batches(HOOK, batch_size, repeat=False, dtype=store.dtype):
            pass

    def shuffled() -> None:
        for _ in store.batches(HOOK, batch_size, repeat=False):
            pass

    part, _ = store.split(0.1)

    def shuffled_part() -> None:
        for _ in part.batches(HOOK, batch_size, repeat=False):
            pass

    contenders: dict[str, tuple[Callable[[], None], str]] = {
        "raw map, as stored": (lambda: raw(False), "raw map, as stored"),
        "in order, as stored": (stored, "raw map, as stored"),
        "shuffled, as stored": (shuffled_stored, "raw map, as stored"),
        "raw map": (lambda: raw(True), "raw map"),
        "in order": (ordered, "raw map"),
        "shuffled": (shuffled, "raw map"),
        "shuffled, 90 % of the clips": (shuffled_part, "raw map"),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for round_ in range(rounds + 1):
        for name, (call, _) in contenders.items():
            began = time.process_time()
            call()
            if round_:  # the first one warms up
                times[name].append(time.process_time() - began)
    size = store.n_rows * store.width(HOOK) * store.dtype.itemsize / 1e9
    found = []
    for name, (_, floor) in contenders.items():
        rows = part.n_rows / store.n_rows if "clips" in name else 1.0
        ratios = [rows * f / t for t, f in zip(times[name], times[floor], strict=True)]
        speed = rows * size / min(times[name])
        found.append(Speed(name, speed, statistics.median(ratios), (min(ratios), max(ratios))))
    return found


def main() -> None:
    parser = report.parser(__doc__)
    parser.add_argument("--rows", type=int, default=262_144)
    parser.add_argument("--shard-rows", type=int, default=65_536)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float16")
    parser.add_argument("--batch-size", type=int, default=4_096)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), options.rows, options.width, options.dtype, options.shard_rows)
        lines = [
            report.head("torch", "numpy", notes=f"1 thread, {options.rounds} rounds"),
            f"{store.n_rows:,} rows of {options.width} in {options.dtype}, batches of {options.batch_size}. Bars: in "
            "order 0.9 of the raw map, shuffled 0.5.",
            "",
            *(f"- {speed}" for speed in measure(store, options.batch_size, options.rounds)),
        ]
    report.publish("\n".join(lines), options.out)


if __name__ == "__main__":
    main()
