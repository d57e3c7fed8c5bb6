"""Which latents fire where and what they stand for, as rows of a table: the answers of `hooked-whisper features`.

Importing it costs nothing, as the command line needs: what a function needs is imported when it runs.
"""

from __future__ import annotations

import wave
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hooked_whisper.errors import AnalysisError, ConfigError

if TYPE_CHECKING:
    from hooked_whisper.analysis.codes import FeatureCodes
    from hooked_whisper.analysis.feature_search import Found
    from hooked_whisper.analysis.frame_labels import FrameLabels
    from hooked_whisper.analysis.labels import Labels
    from hooked_whisper.saes.corpus import Corpus

Rows = list[dict[str, Any]]


def of_search(
    codes: FeatureCodes,
    clip: str | None,
    span: tuple[float, float] | None,
    label: str | None,
    table: FrameLabels | None,
    n: int,
) -> Rows:
    """The latents that tell a clip, a span or a label from all else, best first.

    Raises:
        AnalysisError: a clip or label that is not there, or nothing to tell it from.
    """
    from hooked_whisper.analysis.feature_search import search_label, search_span

    if label is not None:
        assert table is not None
        return [_found(codes, one, None) for one in search_label(codes, table, label, n=n)]
    assert clip is not None
    start, end = span or (0.0, None)
    return [_found(codes, one, clip) for one in search_span(codes, clip, start, end, n=n)]


def _found(codes: FeatureCodes, one: Found, clip: str | None) -> dict[str, Any]:
    rows, values = codes.latent(one.latent)
    if clip is not None:
        here = codes.clip[rows] == codes.clips.index(clip)
        rows, values = rows[here], values[here]
    peak = int(rows[values.argmax()])
    return {
        "latent": one.latent,
        "auc": one.auc,
        "here": one.here,
        "elsewhere": one.elsewhere,
        "strength": one.strength,
        "peak at": float(codes.frame[peak] + 0.5) / codes.frames_per_second,
        "clip": codes.clips[codes.clip[peak]],
    }


def of_clip(codes: FeatureCodes) -> Rows:
    """What fires on a clip and when, by the sum of its activations."""
    from hooked_whisper.analysis.feature_stats import feature_statistics, top_segments

    stats = feature_statistics(codes, by=())
    rows: Rows = []
    for latent in sorted(stats.density.nonzero()[0].tolist(), key=lambda one: -stats.density[one] * stats.mean[one]):
        (peak,) = top_segments(codes, latent, 1)
        rows.append(
            {
                "latent": latent,
                "share": float(stats.density[latent]),
                "mean": float(stats.mean[latent]),
                "maximum": peak.peak,
                "peak at": peak.peak_time,
                "start": peak.start,
                "end": peak.end,
            }
        )
    return rows


def of_all(codes: FeatureCodes, latents: Sequence[int] | None = None) -> Rows:
    """Statistics of each latent, those that fire most often first, or of some in the order given."""
    import numpy as np

    from hooked_whisper.analysis.feature_stats import feature_statistics, top_segments

    known = [
        name for name in ("language",) if name in codes.columns and any(v is not None for v in codes.columns[name])
    ]
    stats = feature_statistics(codes, by=known)
    order = np.argsort(-stats.density, kind="stable").tolist() if latents is None else latents
    rows: Rows = []
    for latent in order:
        row = {
            "latent": int(latent),
            "density": float(stats.density[latent]),
            "mean": float(stats.mean[latent]),
            "maximum": float(stats.maximum[latent]),
            "clips": int(stats.n_clips[latent]),
            "seconds a run": float(stats.duration[latent]),
        }
        for group in stats.by.values():
            row |= {f"in {name}": f"{part:.2%}" for name, part in zip(group.names, group.density[latent], strict=True)}
        top = top_segments(codes, int(latent), 1)
        rows.append(row | {"top clip": top[0].clip if top else None})
    return rows


def of_latents(
    codes: FeatureCodes,
    latents: Sequence[int],
    labels: Labels | None,
    n: int,
    sounds: Path | None = None,
    corpus: Corpus | None = None,
) -> Rows:
    """The top segments of some latents, with what is labelled at the peak of each; as sound files, too, into `sounds`.

    Raises:
        AnalysisError: a latent that is silent on all of the clips. ConfigError: `sounds` without clips.
    """
    from hooked_whisper.analysis.feature_stats import top_segments

    if sounds is not None and corpus is None:
        raise ConfigError("--wav cuts sound out of the clips: name them, too.")
    rows: Rows = []
    for latent in latents:
        segments = top_segments(codes, latent, n)
        if not segments:
            raise AnalysisError(
                f"Latent {latent} fires on none of {codes.n_rows:,} frames of {len(codes.clips):,} clips: try more "
                "clips, or switch it on with hooked-whisper steer."
            )
        for number, one in enumerate(segments, start=1):
            row: dict[str, Any] = {
                "latent": latent, "start": one.start, "end": one.end, "peak": one.peak, "peak at": one.peak_time,
                "clip": one.clip,
            }  # fmt: skip
            if labels is not None and one.clip in labels.tiers:
                row |= {tier: labels.at(one.clip, tier, one.peak_time) or "" for tier in labels.tier_names}
            if sounds is not None and corpus is not None:
                path = sounds / f"{latent}-{number:02d}.wav"
                _write_sound(corpus, one.clip, one.context, path)
                row["sound"] = str(path)
            rows.append(row)
    return rows


def _write_sound(corpus: Corpus, clip: str, span: tuple[float, float], path: Path) -> None:
    from hooked_whisper.audio import SAMPLE_RATE

    item = next(item for item in corpus if item.id == clip)
    start, end = (round(second * SAMPLE_RATE) for second in span)
    samples = (item.load()[start:end].clamp(-1, 1) * 32_767).round().short().numpy()
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())


def of_labels(codes: FeatureCodes, table: FrameLabels, by: str, min_rows: int, seed: int) -> Rows:
    """For each label that both halves have, the latent that the training half chose, by its F1 on the other half.

    Raises:
        AnalysisError: halves that cannot be made, or no label with so many frames.
    """
    from hooked_whisper.analysis.feature_scores import score_features

    scores = score_features(codes, table.select(min_rows=min_rows), by=by, seed=seed)
    found = [match for kind in dict.fromkeys(scores.kinds) for match in scores.best(kind)]
    rows: Rows = [
        {
            "label": match.label, "latent": match.latent, "F1": match.f1, "F1 chosen on": match.f1_train,
            "precision": match.precision, "recall": match.recall, "auc": match.auc, "frames": match.n,
        }
        for match in sorted(found, key=lambda match: -match.f1)
    ]  # fmt: skip
    if not rows:
        raise AnalysisError(
            f"No label is in both halves of the clips: take more clips, another --seed, or halves --by something else "
            f"than {by}."
        )
    return rows
