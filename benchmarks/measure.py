"""Side by side in one run: rounds of every contender in turn, medians of the ratios, peak memory of each.

Machines are noisy and differ, so nothing here reports a time that stands alone: each contender is divided by the one
named as the floor in the same round, and the median over rounds is what is printed.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


@dataclass
class Row:
    """One contender: its time and peak memory relative to the floor of its table."""

    name: str
    ratio: float
    spread: tuple[float, float]  # smallest and largest ratio over the rounds
    peak_mb: float | None


def peak_growth_mb(call: Callable[[], object]) -> float | None:
    """Growth of this process's peak memory during one call, MB; None where the system does not tell (not Linux)."""
    if not (_CLEAR_REFS.exists() and _STATUS.exists()):
        return None
    gc.collect()
    _CLEAR_REFS.write_text("5")  # resets the peak to what is resident now
    before = _resident("VmRSS")
    kept = call()
    peak = _resident("VmHWM")
    del kept
    return (peak - before) / 1024


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1])  # kB


def compare(floor: str, contenders: dict[str, Callable[[], object]], rounds: int) -> list[Row]:
    """Times every contender `rounds` times, in turn, after one warm-up each."""
    memory = {}
    for name, call in contenders.items():
        call()
        memory[name] = peak_growth_mb(call)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            kept = call()
            times[name].append(time.perf_counter() - start)
            del kept
    rows = []
    for name in contenders:
        ratios = [t / f for t, f in zip(times[name], times[floor], strict=True)]
        rows.append(Row(name, statistics.median(ratios), (min(ratios), max(ratios)), memory[name]))
    return rows


def table(title: str, rows: list[Row]) -> str:
    """A Markdown table of the rows."""
    lines = [f"### {title}", "", "| | time, ratio (min to max) | peak memory growth, MB |", "|---|---|---|"]
    for row in rows:
        memory = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        lines.append(f"| {row.name} | {row.ratio:.2f} ({row.spread[0]:.2f} to {row.spread[1]:.2f}) | {memory} |")
    return "\n".join([*lines, ""])
