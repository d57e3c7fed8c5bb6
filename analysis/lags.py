"""Latents that fire a little before their label or after it: the lag is chosen with the latent and its threshold.

    tables = labels_by_lag(labels, codes.clip, codes.frame, codes.clips)
    found = lagged_scores(codes, tables, "phone", by="speaker")
    found["phone=k"].lag                      # frames that the latent for /k/ is ahead of it; below 0, behind it
    sum(one.match.f1 >= 0.7 for one in found.values())

A frame of Whisper's encoder has heard its neighbours, and many latents at a phone's edge stand for the phone that comes
or the one that was. At one fixed moment such a latent looks worse than it is. Everything is chosen on the training
half, so a lag that is luck there gains nothing on the other half.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Integer

from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.feature_scores import Match, phone_scores, score_features
from hooked_whisper.analysis.frame_labels import FrameLabels, frame_labels
from hooked_whisper.analysis.labels import Labels
from hooked_whisper.errors import AnalysisError

LAGS = (-1.0, -0.5, 0.0, 0.5, 1.0)


@dataclass(frozen=True)
class LaggedMatch:
    """One latent against one label, at the lag that the training half chose.

    Attributes:
        match: the latent, its threshold, and its scores at this lag.
        lag: frames that the latent is ahead of the label; below 0, behind it.
        unmoved: the match that the training half chose without a lag; None if 0 was not among the lags.
    """

    match: Match
    lag: float
    unmoved: Match | None

    def __str__(self) -> str:
        where = "ahead" if self.lag > 0 else "behind"
        unit = "frame" if abs(self.lag) == 1 else "frames"
        return str(self.match) + (f", {abs(self.lag):g} {unit} {where}" if self.lag else "")


def labels_by_lag(
    labels: Labels,
    clip: Integer[np.ndarray, " row"],
    frame: Integer[np.ndarray, "_"],
    clips: Sequence[str],
    *,
    lags: Sequence[float] = LAGS,
    centre: float = 0.5,
    tiers: Collection[str] | None = None,
    frames_per_second: float = 50.0,
) -> dict[float, FrameLabels]:
    """Tables of the same rows whose labels are looked up at each lag: `frame_labels` at `centre` + lag.

    Args:
        lags: in frames; what a latent is ahead of its label.
        clip, frame, clips, centre, tiers, frames_per_second: as in `frame_labels`.

    Raises:
        AnalysisError: no lag, one that is given twice or is not finite, or as `frame_labels`.
    """
    if not lags or len(set(lags)) < len(lags) or not np.isfinite(lags).all():
        raise AnalysisError(f"lags={tuple(lags)}: expected frames, each once, such as {LAGS}.")
    return {
        float(lag): frame_labels(
            labels, clip, frame, clips, tiers=tiers, frames_per_second=frames_per_second, centre=centre + lag
        )
        for lag in lags
    }


def lagged_scores(
    codes: FeatureCodes,
    tables: Mapping[float, FrameLabels],
    *kinds: str,
    by: str = "clip",
    train: Bool[np.ndarray, " row"] | None = None,
    seed: int = 0,
    min_rows: int = 20,
    progress: bool | None = None,
) -> dict[str, LaggedMatch]:
    """For each label of these kinds the latent, threshold and lag with the best F1 on the training half.

    Args:
        tables: of the rows of `codes`, by lag: `labels_by_lag`.
        kinds: of the labels; none takes all.
        by, train, seed, progress: as in `score_features`.
        min_rows: that a label has at least in each half, at every lag at which it is considered.

    Raises:
        AnalysisError: no table, no label of these kinds with as many rows, or as `score_features`.
    """
    if not tables:
        raise AnalysisError("No table of labels was given: make them with labels_by_lag.")
    best: dict[str, tuple[float, Match]] = {}
    unmoved: dict[str, Match] = {}
    for lag in sorted(tables, key=lambda one: (abs(one), one)):  # of equals, the least moved
        table = tables[lag]
        train = codes.halves(by, seed=seed) if train is None else train
        scores = score_features(codes, table, train=train, progress=progress)
        for kind in kinds or table.kind_names:
            if not any(min(scores.n_train[at], scores.n_test[at]) >= min_rows for at in scores.of_kind(kind)):
                continue
            for match in phone_scores(scores, kind, min_rows=min_rows).strict:
                if match.label not in best or match.f1_train > best[match.label][1].f1_train:
                    best[match.label] = (lag, match)
                if lag == 0:
                    unmoved[match.label] = match
    if not best:
        raise AnalysisError(f"No label of {', '.join(kinds) or 'any kind'} has {min_rows} rows in each half.")
    return {label: LaggedMatch(match, lag, unmoved.get(label)) for label, (lag, match) in best.items()}
