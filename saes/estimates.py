"""Figures with the uncertainty that comes from which clips happened to be evaluated.

Frames of one clip are alike, and so are its words: resampling them one by one would give intervals far too narrow.
Clips are resampled whole (Bisani & Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance
evaluation", ICASSP).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

LEVEL = 0.95  # of every interval
N_RESAMPLES = 1000
# Weights of at most this many (resample, clip) pairs are held at a time: 64 MB.
_PAIRS = 8_000_000


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; all None where the clips do not define it, the interval where one clip is all."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "n/a"
        if self.low is None or self.high is None:
            return f"{self.value:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def percent(self) -> str:
        """In per cent, with the interval where there is one."""
        if self.value is None:
            return "n/a"
        whole = f"{100 * self.value:.1f} %"
        return (
            whole if self.low is None or self.high is None else f"{whole} [{100 * self.low:.1f}, {100 * self.high:.1f}]"
        )

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit."""
        scale = [None if part is None else part * factor for part in (self.value, self.low, self.high)]
        return Estimate(*scale)


# From how often each clip counts, [resample, clip], to the figure, [resample]; NaN where it is not defined.
Statistic = Callable[[Float[np.ndarray, "resample clip"]], Float[np.ndarray, " resample"]]


def bootstrap(statistic: Statistic, n_clips: int, *, n_resamples: int = N_RESAMPLES, seed: int = 0) -> Estimate:
    """The figure over all clips, with a percentile interval over resamples of the clips.

    `statistic` gets weights [resample, clip] and must depend on them as on numbers of copies. Resamples in which it is
    not defined are left out of the interval.
    """
    if n_clips == 0:
        return Estimate(None)
    value = float(statistic(np.ones((1, n_clips)))[0])
    if not np.isfinite(value):
        return Estimate(None)
    if n_clips == 1 or n_resamples == 0:
        return Estimate(value)
    generator = np.random.default_rng(seed)
    found: list[np.ndarray] = []
    step = max(1, _PAIRS // n_clips)
    for at in range(0, n_resamples, step):
        count = min(step, n_resamples - at)
        weights = generator.multinomial(n_clips, np.full(n_clips, 1 / n_clips), size=count).astype(np.float64)
        found.append(statistic(weights))
    values = np.concatenate(found)
    values = values[np.isfinite(values)]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(values, [tail, 1 - tail]) if len(values) else (value, value)
    return Estimate(value, float(low), float(high))


def ratio(over: Float[np.ndarray, " clip"], under: Float[np.ndarray, " clip"]) -> Statistic:
    """Sum over sum, which is how rates over clips of unequal length are pooled."""

    def statistic(weights: Float[np.ndarray, "resample clip"]) -> Float[np.ndarray, " resample"]:
        return divide(weights @ over, weights @ under)

    return statistic


def divide(over: Float[np.ndarray, "..."], under: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """over / under, NaN where `under` is not positive."""
    return np.divide(over, under, out=np.full_like(over, np.nan, dtype=np.float64), where=under > 0)
