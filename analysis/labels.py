"""What is said when: intervals with a label, in tiers, for each clip.

    labels = read_labels("alignments/")                          # TextGrid, CTM, JSON, CSV: see label_files
    labels = word_labels(model, corpus)                          # from Whisper's own cross-attention: see word_labels
    labels = labels.merge(other).where(tiers=["phone", "word"])
    labels["en/vm-goodbye"]["word"]                              # (Interval(start=0.12, end=0.46, value='goodbye'),)

A tier holds one thing at a time: its intervals may leave gaps, but never overlap. Times are seconds from the clip's
start. `frame_labels` turns labels into a table with a row for each frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hooked_whisper.errors import AnalysisError, did_you_mean

ROUNDING = 2e-6  # seconds; what sums of times lose
# Times that were rounded to a frame may end this much after the clip.
TOLERANCE = 0.05  # seconds

Row = tuple[str, str, float, float, str]


@dataclass(frozen=True, order=True)
class Interval:
    """A label and when it holds: from `start` to just before `end`, in seconds of its clip."""

    start: float
    end: float
    value: str

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


@dataclass(frozen=True)
class Labels:
    """Intervals by clip and tier.

    Attributes:
        tiers: clip -> tier ("phone", "word", ...) -> intervals in the order of their times. A tier that is there and
            empty says that the clip was looked at and nothing was found; a tier that is missing says nothing.
        durations: clip -> seconds, where they are known.

    Raises:
        AnalysisError: an interval that is not finite, negative, reversed, empty, out of order, overlaps the one before
            it, has no value, or ends more than 0.05 s after its clip.
    """

    tiers: Mapping[str, Mapping[str, tuple[Interval, ...]]]
    durations: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for clip, tiers in self.tiers.items():
            seconds = self.durations.get(clip)
            if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
                raise AnalysisError(f"Clip {clip!r} is said to last {seconds} s: expected a time above 0.")
            for tier, intervals in tiers.items():
                _check(intervals, f"clip {clip!r}, tier {tier!r}", seconds)

    @classmethod
    def from_rows(
        cls, rows: Iterable[Row], *, durations: Mapping[str, float] | None = None, tolerance: float = 0.0
    ) -> Labels:
        """Labels from (clip, tier, start, end, value), in any order.

        Args:
            durations: seconds of each clip, where they are known.
            tolerance: an interval that runs into the next one by at most this many seconds is cut short; times in
                files are rounded.

        Raises:
            AnalysisError: as for `Labels`.
        """
        found: dict[str, dict[str, list[Interval]]] = {}
        for clip, tier, start, end, value in rows:
            found.setdefault(clip, {}).setdefault(tier, []).append(Interval(start, end, value))
        return cls(
            {
                clip: {tier: in_order(intervals, max(tolerance, ROUNDING)) for tier, intervals in tiers.items()}
                for clip, tiers in found.items()
            },
            dict(durations or {}),
        )

    # What it holds

    def __getitem__(self, clip: str) -> Mapping[str, tuple[Interval, ...]]:
        if clip not in self.tiers:
            raise AnalysisError(
                f"There are no labels for clip {clip!r}, only for {len(self.tiers)} others."
                + did_you_mean(clip, self.tiers)
                + " Where files are named differently, labels.for_clips(ids) pairs them."
            )
        return self.tiers[clip]

    def __len__(self) -> int:
        """Clips in all."""
        return len(self.tiers)

    @property
    def clips(self) -> tuple[str, ...]:
        """Ids of the clips."""
        return tuple(self.tiers)

    @property
    def tier_names(self) -> tuple[str, ...]:
        """Tiers that at least one clip has, in the order in which they come."""
        return tuple(dict.fromkeys(tier for tiers in self.tiers.values() for tier in tiers))

    def rows(self) -> Iterator[Row]:
        """Every interval, as (clip, tier, start, end, value)."""
        for clip, tiers in self.tiers.items():
            for tier, intervals in tiers.items():
                for one in intervals:
                    yield clip, tier, one.start, one.end, one.value

    def seconds(self, tier: str) -> dict[str, float]:
        """How long each value of a tier is heard in all clips together, the longest first.

        Raises:
            AnalysisError: no clip has that tier.
        """
        self._need(tier)
        found: dict[str, float] = {}
        for tiers in self.tiers.values():
            for one in tiers.get(tier, ()):
                found[one.value] = found.get(one.value, 0.0) + one.seconds
        return dict(sorted(found.items(), key=lambda pair: (-pair[1], pair[0])))

    def at(self, clip: str, tier: str, seconds: float) -> str | None:
        """The value that holds at a time, or None in a gap."""
        self._need(tier)
        held = (one.value for one in self[clip].get(tier, ()) if one.start <= seconds < one.end)
        return next(held, None)

    def _need(self, tier: str) -> None:
        if tier not in self.tier_names:
            raise AnalysisError(
                f"There is no tier {tier!r}: the labels have {', '.join(map(repr, self.tier_names)) or 'none'}."
                + did_you_mean(tier, self.tier_names)
            )

    # Others made from it

    def merge(self, *others: Labels) -> Labels:
        """These labels and others: more clips, or more tiers of the same clips.

        Raises:
            AnalysisError: a tier that two of them have for one clip, or durations that contradict each other.
        """
        tiers = {clip: dict(own) for clip, own in self.tiers.items()}
        durations = dict(self.durations)
        for other in others:
            for clip, theirs in other.tiers.items():
                mine = tiers.setdefault(clip, {})
                if both := sorted(mine.keys() & theirs.keys()):
                    raise AnalysisError(
                        f"Clip {clip!r} has tier {both[0]!r} twice: rename one with rename_tiers, or leave it out with "
                        "where(tiers=...)."
                    )
                mine.update(theirs)
            for clip, seconds in other.durations.items():
                if abs(durations.setdefault(clip, seconds) - seconds) > TOLERANCE:
                    raise AnalysisError(
                        f"Clip {clip!r} lasts {durations[clip]} s, or {seconds} s: the labels disagree."
                    )
        return Labels(tiers, durations)

    def where(
        self,
        *,
        clips: Collection[str] | None = None,
        tiers: Collection[str] | None = None,
        values: Callable[[str], bool] | None = None,
    ) -> Labels:
        """The part of the labels that is of these clips and tiers, and whose value passes a test.

        Raises:
            AnalysisError: clips or tiers that are not there.
        """
        for clip in clips or ():
            self[clip]
        for tier in tiers or ():
            self._need(tier)
        kept = {
            clip: {
                tier: tuple(one for one in intervals if values is None or values(one.value))
                for tier, intervals in own.items()
                if tiers is None or tier in tiers
            }
            for clip, own in self.tiers.items()
            if clips is None or clip in clips
        }
        return Labels(kept, {clip: seconds for clip, seconds in self.durations.items() if clip in kept})

    def rename_tiers(self, names: Mapping[str, str]) -> Labels:
        """The same under other names: {"phones": "phone", "words": "word"}.

        Raises:
            AnalysisError: a tier that is not there, or two that would have one name.
        """
        for tier in names:
            self._need(tier)
        renamed: dict[str, dict[str, tuple[Interval, ...]]] = {}
        for clip, tiers in self.tiers.items():
            renamed[clip] = {names.get(tier, tier): intervals for tier, intervals in tiers.items()}
            if len(renamed[clip]) < len(tiers):
                raise AnalysisError(f"Clip {clip!r} has the tiers {list(tiers)}: {dict(names)} gives two one name.")
        return Labels(renamed, self.durations)

    def derive(self, tier: str, into: str, value: Callable[[str], str | None]) -> Labels:
        """A tier `into` that says something else of the intervals of `tier`; None leaves an interval out.

        Neighbours of one value become one interval. The result holds the new tier alone: `merge` adds it.

        Raises:
            AnalysisError: no such tier.
        """
        self._need(tier)
        made: dict[str, dict[str, tuple[Interval, ...]]] = {}
        for clip, tiers in self.tiers.items():
            if tier in tiers:
                named = [(one, value(one.value)) for one in tiers[tier]]
                made[clip] = {into: join([Interval(one.start, one.end, v) for one, v in named if v is not None])}
        return Labels(made, self.durations)

    def with_durations(self, durations: Mapping[str, float]) -> Labels:
        """The same, with the seconds of clips, against which times are checked.

        Raises:
            AnalysisError: an interval that ends after its clip.
        """
        return Labels(self.tiers, {**self.durations, **durations})

    def for_clips(self, ids: Iterable[str]) -> Labels:
        """The same, with clips called as a corpus or store calls them.

        A clip of the labels is the one with the same id; else the one with the same path, endings aside
        ("en/hello" and "en/hello.wav"); else the one with the same file name. Clips without labels are passed over.

        Raises:
            AnalysisError: labels that fit no id, or fit several.
        """
        ids = tuple(ids)
        exact, paths, names = set(ids), _by(_stem, ids), _by(_name, ids)
        renamed: dict[str, str] = {}
        for clip in self.tiers:
            fits = [clip] if clip in exact else paths.get(_stem(clip)) or names.get(_name(clip)) or []
            if len(fits) != 1:
                found = f"fits {', '.join(map(repr, fits[:3]))}" if fits else f"fits none of {len(ids)} clips"
                raise AnalysisError(
                    f"The clip {clip!r} of the labels {found}.{did_you_mean(clip, ids)} Choose clips with "
                    "where(clips=...), or name the label files as the clips are named."
                )
            renamed[clip] = fits[0]
        if len(set(renamed.values())) < len(renamed):
            twice = next(clip for clip in renamed.values() if list(renamed.values()).count(clip) > 1)
            raise AnalysisError(f"Several clips of the labels fit {twice!r}: choose with where(clips=...).")
        return Labels(
            {renamed[clip]: tiers for clip, tiers in self.tiers.items()},
            {renamed.get(clip, clip): seconds for clip, seconds in self.durations.items()},
        )

    # As plain data

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists, for JSON: clip -> seconds and tiers, a tier as [[start, end, value], ...]."""
        return {
            "format": "hooked-whisper labels",
            "version": 1,
            "clips": {
                clip: {
                    "seconds": self.durations.get(clip),
                    "tiers": {tier: [[i.start, i.end, i.value] for i in own] for tier, own in tiers.items()},
                }
                for clip, tiers in self.tiers.items()
            },
        }

    @classmethod
    def from_dict(cls, data: Any) -> Labels:
        """Labels from what `to_dict` gives.

        Raises:
            AnalysisError: another kind of data, or intervals that cannot be.
        """
        if not isinstance(data, Mapping) or data.get("format") != "hooked-whisper labels" or data.get("version") != 1:
            raise AnalysisError('These are no labels: expected {"format": "hooked-whisper labels", "version": 1, ...}.')
        tiers: dict[str, dict[str, tuple[Interval, ...]]] = {}
        durations: dict[str, float] = {}
        for clip, entry in data["clips"].items():
            tiers[clip] = {}
            for tier, intervals in entry["tiers"].items():
                if bad := [one for one in intervals if not _is_triple(one)]:
                    raise AnalysisError(
                        f"Labels of clip {clip!r}, tier {tier!r}: expected [start, end, value], times and a text, "
                        f"got {bad[0]!r}."
                    )
                tiers[clip][tier] = tuple(Interval(*one) for one in intervals)
            if entry.get("seconds") is not None:
                durations[clip] = entry["seconds"]
        return cls(tiers, durations)


def _is_triple(value: Any) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(time, int | float) and not isinstance(time, bool) for time in value[:2])
        and isinstance(value[2], str)
    )


def _check(intervals: Sequence[Interval], where: str, seconds: float | None) -> None:
    before: Interval | None = None
    for one in intervals:
        said = f"Labels of {where}, interval [{one.start}, {one.end}] {one.value!r}:"
        if not one.value:
            raise AnalysisError(f"{said} has no value: leave out what has no label.")
        if not (math.isfinite(one.start) and math.isfinite(one.end)):
            raise AnalysisError(f"{said} times must be finite numbers of seconds.")
        if one.start < 0:
            raise AnalysisError(f"{said} begins before its clip: times count from the clip's start, in seconds.")
        if one.end <= one.start:
            raise AnalysisError(f"{said} ends before it begins, or lasts no time: expected start < end, in seconds.")
        if before is not None and one.start < before.end:
            raise AnalysisError(
                f"{said} overlaps [{before.start}, {before.end}] {before.value!r} by {before.end - one.start:.3g} s. "
                "A tier holds one thing at a time: put what happens at once in tiers of its own, or let "
                "tolerance= mend times that were rounded."
            )
        if seconds is not None and one.end > seconds + TOLERANCE:
            raise AnalysisError(
                f"{said} ends after its clip, which lasts {seconds:.3f} s: are the labels those of another file, or "
                "in samples or ms instead of seconds?"
            )
        before = one


def in_order(intervals: Iterable[Interval], tolerance: float) -> tuple[Interval, ...]:
    """Sorted, and cut short where one runs into the next by no more than `tolerance`."""
    ordered = sorted(intervals, key=lambda one: (one.start, one.end))
    for index, (one, after) in enumerate(zip(ordered, ordered[1:], strict=False)):
        if 0 < one.end - after.start <= tolerance and one.start < after.start:
            ordered[index] = Interval(one.start, after.start, one.value)
    return tuple(ordered)


def join(intervals: Sequence[Interval]) -> tuple[Interval, ...]:
    """Neighbours that touch and have one value, made one."""
    joined: list[Interval] = []
    for one in intervals:
        if joined and joined[-1].value == one.value and one.start - joined[-1].end <= ROUNDING:
            joined[-1] = Interval(joined[-1].start, one.end, one.value)
        else:
            joined.append(one)
    return tuple(joined)


def _stem(clip: str) -> str:
    head, dot, ending = clip.rpartition(".")
    return head if dot and "/" not in ending else clip


def _name(clip: str) -> str:
    return _stem(clip).rpartition("/")[2]


def _by(key: Callable[[str], str], ids: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for clip in ids:
        found.setdefault(key(clip), []).append(clip)
    return found


def plain_word(text: str) -> str:
    """A word as labels call it: lower case, without spaces and punctuation around it; "" if nothing is left."""
    found = text.strip().casefold()
    said = [index for index, letter in enumerate(found) if letter.isalnum()]
    return found[said[0] : said[-1] + 1] if said else ""
