"""Labels made from labels: how phones are made, where in a phone, a word, an utterance a frame is, what a table says.

    more = articulatory_labels(labels).merge(
        position_labels(labels, "phone"), position_labels(labels, "word"), utterance_labels(labels),
        boundary_labels(labels, "phone"), speech_labels(labels), time_labels(labels),
        table_labels(labels, "parts_of_speech.csv"), clip_labels(corpus, labels.durations, ["language", "speaker"]),
    )

Each function returns the new tiers alone. What the sound itself says (loudness, pitch) is in `sound_labels`.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hooked_whisper.analysis.labels import Interval, Labels, join, plain_word
from hooked_whisper.analysis.phones import articulations, classes, unknown_phones
from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.corpus import Corpus

if TYPE_CHECKING:
    Unknown = Literal["raise", "skip"]
else:
    Unknown = str  # checked here, with a message that says more than a type checker's

PARTS = ("onset", "middle", "offset")


def articulatory_labels(labels: Labels, tier: str = "phone", *, unknown: Unknown = "raise") -> Labels:
    """Tiers "voicing", "manner", "place", "height", "backness", "rounding" and the others of `phones.classes`.

    The sounds of a diphthong, or of a vowel with r, share its time equally. Kinds that no phone has are left out.

    Args:
        tier: of phones in IPA.
        unknown: "raise", or "skip" to leave out phones whose symbols are not known.

    Raises:
        AnalysisError: phones that are not known (all are named), no such tier, or another `unknown`.
    """
    if unknown not in ("raise", "skip"):
        raise AnalysisError(f"unknown={unknown!r}: expected 'raise' or 'skip'.")
    strange = unknown_phones(labels.seconds(tier))
    if strange and unknown == "raise":
        raise AnalysisError(
            f"Tier {tier!r} has phones that are no IPA: {', '.join(map(repr, strange))}. Name them in IPA with "
            "labels.derive, or leave them out with unknown='skip'."
        )

    def made(intervals: Sequence[Interval]) -> dict[str, tuple[Interval, ...]]:
        tiers: dict[str, list[Interval]] = {kind: [] for kind in _KINDS}
        for one in intervals:
            if one.value in strange:
                continue
            sounds = articulations(one.value)
            for sound, (start, end) in zip(sounds, _cut(one, len(sounds)), strict=True):
                for kind, value in classes(sound).items():
                    tiers[kind].append(Interval(start, end, value))
        return {kind: join(own) for kind, own in tiers.items()}

    found = _of_each(labels, tier, made)
    # What no phone is marked for (length, palatalisation) is no tier.
    return found.where(tiers=[kind for kind in _KINDS if kind in found.tier_names and found.seconds(kind)])


_KINDS = (
    *("voicing", "manner", "place", "place_class", "height", "height_class", "backness", "rounding"),
    *("nasality", "palatalisation", "length"),
)


def position_labels(labels: Labels, tier: str) -> Labels:
    """A tier "<tier>_position": the first, second and last third of each interval, as "onset", "middle", "offset".

    Raises:
        AnalysisError: no such tier.
    """

    def made(intervals: Sequence[Interval]) -> dict[str, tuple[Interval, ...]]:
        parts = [
            Interval(start, end, part)
            for one in intervals
            for part, (start, end) in zip(PARTS, _cut(one, len(PARTS)), strict=True)
        ]
        return {f"{tier}_position": tuple(parts)}

    return _of_each(labels, tier, made)


def utterance_labels(labels: Labels, tier: str = "word", *, edge: float = 0.2, pause: float = 0.3) -> Labels:
    """A tier "utterance_position": "start", "middle" or "end" of a stretch of speech.

    Args:
        tier: whose intervals are speech.
        edge: seconds that count as start and as end; a stretch shorter than twice that has no middle.
        pause: an utterance ends before a gap of at least so many seconds.

    Raises:
        AnalysisError: no such tier, or times that are not above 0.
    """
    _positive(edge=edge, pause=pause)

    def made(intervals: Sequence[Interval]) -> dict[str, tuple[Interval, ...]]:
        found = []
        for start, end in _stretches(intervals, pause):
            reach = min(edge, (end - start) / 2)
            edges = [(start, start + reach, "start"), (start + reach, end - reach, "middle"), (end - reach, end, "end")]
            found += [Interval(*one) for one in edges if one[1] > one[0]]
        return {"utterance_position": tuple(found)}

    return _of_each(labels, tier, made)


def boundary_labels(labels: Labels, tier: str, *, within: float = 0.02) -> Labels:
    """A tier "<tier>_boundary", "near" where an interval begins or ends at most `within` seconds away.

    Raises:
        AnalysisError: no such tier, or a time that is not above 0.
    """
    _positive(within=within)

    def made(intervals: Sequence[Interval]) -> dict[str, tuple[Interval, ...]]:
        times = sorted({time for one in intervals for time in (one.start, one.end)})
        spans: list[list[float]] = []
        for time in times:
            if spans and time - within <= spans[-1][1]:
                spans[-1][1] = time + within
            else:
                spans.append([max(0.0, time - within), time + within])
        return {f"{tier}_boundary": tuple(Interval(start, end, "near") for start, end in spans)}

    spread = _of_each(Labels(labels.tiers), tier, made)  # without durations: what reaches past a clip is cut off next
    durations = {clip: seconds for clip, seconds in labels.durations.items() if clip in spread.tiers}
    return Labels(_clipped(spread, durations), durations)


def speech_labels(labels: Labels, tier: str = "phone", *, pause: float = 0.1) -> Labels:
    """A tier "speech": "speech" where the tier has something, "silence" in gaps of at least `pause` seconds.

    Before the first interval and after the last, any gap is silence; the end needs the clip's duration.

    Raises:
        AnalysisError: no such tier, a time that is not above 0, or a clip whose duration is not known.
    """
    _positive(pause=pause)
    _need_durations(labels)
    labels.seconds(tier)
    made: dict[str, dict[str, tuple[Interval, ...]]] = {}
    for clip, tiers in labels.tiers.items():
        if tier not in tiers:
            continue
        found, at, end = [], 0.0, labels.durations[clip]
        for start, until in _stretches(tiers[tier], pause):
            found += [Interval(at, start, "silence")] if start > at else []
            found.append(Interval(start, until, "speech"))
            at = until
        found += [Interval(at, end, "silence")] if end > at else []
        made[clip] = {"speech": tuple(found)}
    return Labels(made, labels.durations)


def time_labels(labels: Labels, *, step: float = 3.0) -> Labels:
    """A tier "time": which stretch of `step` seconds of its clip a frame is in, as "00-03 s".

    A clip's time is the window's where clips were harvested one to a window; where several were packed into one window,
    take the window's frame from the store, with `column_labels`.

    Raises:
        AnalysisError: a time that is not above 0, or a clip whose duration is not known.
    """
    _positive(step=step)
    _need_durations(labels)
    made: dict[str, dict[str, tuple[Interval, ...]]] = {}
    for clip in labels.tiers:
        seconds, count = labels.durations[clip], 0
        found = []
        while count * step < seconds:
            start, end = count * step, (count + 1) * step
            found.append(Interval(start, min(end, seconds), f"{start:02g}-{end:02g} s"))
            count += 1
        made[clip] = {"time": tuple(found)}
    return Labels(made, labels.durations)


def clip_labels(corpus: Corpus, durations: Mapping[str, float], columns: Sequence[str]) -> Labels:
    """A tier for each column of a corpus, which says one thing of a whole clip: language, speaker, key.

    Args:
        durations: seconds of each clip, such as `labels.durations`; others are left out.
        columns: which.

    Raises:
        AnalysisError: none of the clips has a duration. CorpusError: an unknown column.
    """
    values = {column: corpus.values(column) for column in columns}
    made: dict[str, dict[str, tuple[Interval, ...]]] = {}
    for place, item in enumerate(corpus):
        if item.id in durations:
            whole = {column: own[place] for column, own in values.items()}
            made[item.id] = {
                column: (Interval(0.0, durations[item.id], str(value)),)
                for column, value in whole.items()
                if value is not None
            }
    if not made:
        raise AnalysisError(f"No clip of {corpus.name} has a duration: pair the labels with labels.for_clips(ids).")
    return Labels(made, {clip: durations[clip] for clip in made})


def table_labels(
    labels: Labels,
    table: str | os.PathLike[str] | Mapping[str, Mapping[str, str]],
    tier: str = "word",
    *,
    language: str | None = None,
) -> Labels:
    """Tiers that a table gives for words: part of speech, morphemes, meaning, one for each column.

    Args:
        table: a CSV file with a column `word` and further columns, perhaps one called `language`; or word -> column ->
            value. Cells that are empty say nothing. Words are compared in lower case, without punctuation around them.
        tier: whose values are looked up.
        language: takes the rows of this language alone, where the table has several.

    Raises:
        AnalysisError: a table that is missing or malformed, two rows for a word, none of the words in it, or no such
            tier.
    """
    rows = table if isinstance(table, Mapping) else _read_table(Path(table), language)
    tags = {plain_word(word): dict(own) for word, own in rows.items()}
    columns = tuple(dict.fromkeys(column for own in tags.values() for column in own))
    spoken = {plain_word(value) for value in labels.seconds(tier)}
    if not spoken & set(tags) or not columns:
        raise AnalysisError(f"The table has none of the {len(spoken)} words of tier {tier!r}: are they spelt alike?")
    found = [
        labels.derive(tier, column, lambda value, column=column: tags.get(plain_word(value), {}).get(column) or None)
        for column in columns
    ]
    return found[0].merge(*found[1:])


def _read_table(file: Path, language: str | None) -> dict[str, dict[str, str]]:
    if not file.is_file():
        raise AnalysisError(f"No table at {file} (looked from {Path.cwd()}).")
    rows: dict[str, dict[str, str]] = {}
    with file.open(encoding="utf-8-sig", newline="") as content:
        reader = csv.DictReader(content, strict=True)
        header = list(reader.fieldnames or [])
        if "word" not in header or len(header) < 2:
            raise AnalysisError(f"{file} has the columns {', '.join(header)}: expected `word` and at least one more.")
        if language is not None and "language" not in header:
            raise AnalysisError(f"{file} has no column `language`: leave language= out.")
        for row in reader:
            if None in row or None in row.values():
                raise AnalysisError(f"{file}, line {reader.line_num} has more or fewer cells than the header.")
            if language is not None and row["language"] != language:
                continue
            word = plain_word(row["word"])
            if word in rows:
                raise AnalysisError(f"{file}, line {reader.line_num}: {word!r} has two rows. Choose a language=?")
            rows[word] = {name: cell for name, cell in row.items() if name not in ("word", "language") and cell}
    return rows


def _of_each(
    labels: Labels, tier: str, made: Callable[[Sequence[Interval]], dict[str, tuple[Interval, ...]]]
) -> Labels:
    """New tiers for every clip that has `tier`."""
    labels.seconds(tier)  # says so where there is no such tier
    return Labels(
        {clip: made(tiers[tier]) for clip, tiers in labels.tiers.items() if tier in tiers},
        {clip: seconds for clip, seconds in labels.durations.items() if tier in labels.tiers.get(clip, {})},
    )


def _clipped(labels: Labels, durations: Mapping[str, float]) -> dict[str, dict[str, tuple[Interval, ...]]]:
    """Intervals that reach past their clip, held to it."""
    return {
        clip: {
            tier: tuple(
                Interval(one.start, min(one.end, durations.get(clip, one.end)), one.value)
                for one in own
                if one.start < durations.get(clip, one.end)
            )
            for tier, own in tiers.items()
        }
        for clip, tiers in labels.tiers.items()
    }


def _cut(one: Interval, parts: int) -> list[tuple[float, float]]:
    edges = [one.start + one.seconds * part / parts for part in range(parts)] + [one.end]
    return [(start, end) for start, end in zip(edges, edges[1:], strict=False)]


def _stretches(intervals: Sequence[Interval], pause: float) -> list[tuple[float, float]]:
    """Start and end of runs of intervals without a gap of `pause` seconds."""
    runs: list[tuple[float, float]] = []
    for one in intervals:
        if runs and one.start - runs[-1][1] < pause:
            runs[-1] = (runs[-1][0], one.end)
        else:
            runs.append((one.start, one.end))
    return runs


def _positive(**times: float) -> None:
    for name, value in times.items():
        if not value > 0:
            raise AnalysisError(f"{name}={value}: expected a time above 0, in seconds.")


def _need_durations(labels: Labels) -> None:
    if lacking := [clip for clip in labels.tiers if clip not in labels.durations]:
        raise AnalysisError(f"How long {lacking[0]!r} is is not known: labels.with_durations({{clip: seconds}}) tells.")
