"""What the pages of a dashboard show of each latent, gathered from codes, labels, scores and experiments.

    source = FeatureSource(sae, codes, corpus, labels=labels, scores=scores)
    view = source.view(1234)
    view.density, view.hits[0].segment.start, view.neighbours

It is made latent by latent, so that thousands of latents take no more memory than one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int

from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.dashboard_media import Excerpt
from hooked_whisper.analysis.dashboard_steering import SteeringView
from hooked_whisper.analysis.feature_classes import FeatureClasses
from hooked_whisper.analysis.feature_effects import TokenEffect
from hooked_whisper.analysis.feature_scores import FeatureScores, Match
from hooked_whisper.analysis.feature_stats import FeatureStatistics, Segment, feature_statistics, top_segments
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.audio import WINDOW_SECONDS
from hooked_whisper.errors import AnalysisError, did_you_mean
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.saes.coding import SparseCoder
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem

BINS = 24  # of the histogram
N_MATCHES = 8  # labels that a page lists
N_NEIGHBOURS = 5
# What a label needs to name a latent where no class decides: held-out F1, and three times the activation of elsewhere.
MIN_F1, MIN_SELECTIVITY = 0.1, 0.5
_FIRST_TIERS = ("word", "phone")
_GROUPS = ("language", "speaker")
_BLOCK = 1024  # rows of the decoder compared with all others at a time


@dataclass(frozen=True)
class Hit:
    """One of the segments on which a latent is most active.

    Attributes:
        segment: times in seconds of the clip.
        item: the clip.
        excerpt: the part of it that is shown and played, all of it unless it is longer than 30 s.
        acts: of each frame of the excerpt; 0 where the latent is silent.
        said: what labels say at its peak, by tier.
        tiers: intervals of the excerpt, by tier, in seconds of the clip.
    """

    segment: Segment
    item: CorpusItem
    excerpt: Excerpt
    acts: Float[np.ndarray, " frame"]
    said: Mapping[str, str]
    tiers: Mapping[str, Sequence[Interval]]


@dataclass(frozen=True)
class Neighbour:
    """Another latent whose decoder direction is close, with the cosine between them."""

    latent: int
    cosine: float


@dataclass(frozen=True)
class FeatureView:
    """All that a page shows of a latent.

    Attributes:
        n_active, n_rows: frames on which it is active, of all.
        n_clips, n_clips_all: clips in which it is active, of all.
        mean, maximum: of its activation where it is active.
        duration: mean seconds for which it stays active.
        counts, edges: histogram of its activations.
        groups: column -> (value, part of the value's frames on which it is active), most active first.
        hits: strongest first, of different clips.
        peaks: tier -> (value, at how many of the hits' peaks it is said), most frequent first.
        label, f1: what it is named after in the index, "" where nothing is, and the held-out F1 of that.
        of_class: its class, "" where none were decided; `why` its evidence.
        matches: the labels that fit best on the training half.
        effects: what taking it away does to the transcript; None where that was not measured.
        steering: what steering it did, where that was run.
    """

    latent: int
    n_active: int
    n_rows: int
    n_clips: int
    n_clips_all: int
    mean: float
    maximum: float
    duration: float
    counts: Int[np.ndarray, " bin"]
    edges: Float[np.ndarray, " edge"]
    groups: Mapping[str, Sequence[tuple[str, float]]]
    hits: Sequence[Hit]
    peaks: Mapping[str, Sequence[tuple[str, int]]]
    label: str
    f1: float | None
    of_class: str
    why: str
    matches: Sequence[Match]
    neighbours: Sequence[Neighbour]
    effects: Sequence[TokenEffect] | None
    steering: Sequence[SteeringView]

    @property
    def density(self) -> float:
        """Part of the frames on which it is active."""
        return self.n_active / max(self.n_rows, 1)


class FeatureSource:
    """Where views of latents come from; see `hooked_whisper.analysis.dashboard.make_dashboard` for the arguments.

    Raises:
        AnalysisError: parts that do not belong together: codes, scores or classes of another number of latents, codes
            of clips that the corpus does not have, labels of none of the clips, latents that are not there.
    """

    def __init__(
        self,
        sae: SparseCoder,
        codes: FeatureCodes,
        corpus: Corpus,
        *,
        labels: Labels | None = None,
        scores: FeatureScores | None = None,
        classes: FeatureClasses | None = None,
        effects: Mapping[int, Sequence[TokenEffect]] | None = None,
        steering: Mapping[int, Sequence[SteeringView]] | None = None,
        n_segments: int = 8,
        tiers: Sequence[str] | None = None,
    ) -> None:
        self.sae, self.codes, self.corpus, self.n_segments = sae, codes, corpus, n_segments
        if n_segments < 1:
            raise AnalysisError(f"n_segments={n_segments}: expected at least 1 segment a feature.")
        n_latents = sae.cfg.d_sae * (2 if isinstance(sae, Basis) else 1)
        if codes.n_latents != n_latents:
            raise AnalysisError(f"The codes are of {codes.n_latents} latents, and the SAE has {n_latents}.")
        if scores is None and classes is not None:
            scores = classes.evidence.scores
        for what, found in (("scores", scores), ("classes", classes)):
            length = None if found is None else len(found.of) if isinstance(found, FeatureClasses) else found.n_latents
            if length not in (None, n_latents):
                raise AnalysisError(f"The {what} are of {length} latents, and the SAE has {n_latents}.")
        self.scores, self.classes = scores, classes
        self.effects, self.steering = effects, steering or {}
        for what, given in (("effects", effects or {}), ("steering", self.steering)):
            self.check_latents(what, given)
        self.items = _items(codes, corpus)
        self.labels = labels  # of more clips than are shown, it may be
        if labels is not None and not any(clip in labels.tiers for clip in codes.clips):
            self.labels = labels.for_clips(codes.clips)
        self.tiers = _tiers(self.labels, tiers)
        self.number = {clip: index for index, clip in enumerate(codes.clips)}

    @cached_property
    def stats(self) -> FeatureStatistics:
        """Statistics of all latents, by the columns that have more than one value."""
        shown = [name for name in _GROUPS if name in self.codes.columns and len(self.codes.groups(name)[1]) > 1]
        return feature_statistics(self.codes, by=shown)

    def check_latents(self, what: str, latents: object) -> list[int]:
        """The latents, if all are there.

        Raises:
            AnalysisError: none, one twice, or one that is not there.
        """
        found = list(latents) if isinstance(latents, Sequence | Mapping) else []
        wrong = [one for one in found if isinstance(one, bool) or not 0 <= int(one) < self.codes.n_latents]
        if wrong or len(set(found)) < len(found):
            which = wrong[0] if wrong else next(one for one in found if found.count(one) > 1)
            raise AnalysisError(
                f"{what} names latent {which}{'' if wrong else ' twice'}: there are {self.codes.n_latents}, counted "
                "from 0."
            )
        return [int(one) for one in found]

    def segments(self, latent: int) -> list[Segment]:
        """Where a latent is most active, each in another clip."""
        return top_segments(self.codes, latent, self.n_segments)

    def excerpt(self, segment: Segment) -> Excerpt:
        """The excerpt in which a segment has its peak."""
        return Excerpt(self.number[segment.clip], int(segment.peak_time // WINDOW_SECONDS))

    @cached_property
    def _rows_of(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows by clip, in the order of their frames: where each clip's begin, and the rows."""
        order = np.lexsort((self.codes.frame, self.codes.clip))
        return np.searchsorted(self.codes.clip[order], np.arange(len(self.codes.clips) + 1)), order

    @cached_property
    def _neighbours(self) -> tuple[np.ndarray, np.ndarray]:
        """[latent rank]: the nearest latents by decoder direction, and their cosines."""
        rows = self.sae.W_dec.detach().float().cpu()
        unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        n = min(N_NEIGHBOURS, len(unit) - 1)
        near, cosines = [], []
        for first in range(0, len(unit), _BLOCK):
            block = unit[first : first + _BLOCK] @ unit.T
            block[torch.arange(len(block)), torch.arange(first, first + len(block))] = -2.0  # itself
            values, indices = block.topk(n, dim=1)
            near.append(indices)
            cosines.append(values)
        return torch.cat(near).numpy(), torch.cat(cosines).numpy()

    def view(self, latent: int) -> FeatureView:
        """All that is shown of one latent."""
        stats = self.stats
        rows, values = self.codes.latent(latent)
        top = float(stats.maximum[latent])
        counts, edges = np.histogram(values, BINS, (0.0, top or 1.0))
        hits = [self._hit(segment, rows, values) for segment in self.segments(latent)]
        peaks = {}
        for tier in self.tiers:
            said = Counter(hit.said[tier] for hit in hits if tier in hit.said)
            if said:
                peaks[tier] = said.most_common()
        label, f1 = self._label(latent)
        return FeatureView(
            latent=latent,
            n_active=len(rows),
            n_rows=self.codes.n_rows,
            n_clips=int(stats.n_clips[latent]),
            n_clips_all=len(self.codes.clips),
            mean=float(stats.mean[latent]),
            maximum=top,
            duration=float(stats.duration[latent]),
            counts=counts,
            edges=edges,
            groups=self.groups(latent),
            hits=hits,
            peaks=peaks,
            label=label,
            f1=f1,
            of_class="" if self.classes is None else self.classes.of[latent],
            why="" if self.classes is None else self.classes.why(latent),
            matches=self._matches(latent),
            neighbours=self._near(latent),
            effects=None if self.effects is None else self.effects.get(latent),
            steering=self.steering.get(latent, ()),
        )

    def groups(self, latent: int) -> dict[str, list[tuple[str, float]]]:
        """Column -> (value, density there), most active first; nothing for a silent latent."""
        found = {}
        for name, group in self.stats.by.items():
            density = group.density[latent]
            order = np.argsort(-density, kind="stable")
            found[name] = [(group.names[at], float(density[at])) for at in order if density[at] > 0]
        return {name: values for name, values in found.items() if values}

    def _near(self, latent: int) -> list[Neighbour]:
        if self.codes.signed:  # directions of a basis are at right angles
            return []
        near, cosines = self._neighbours
        return [Neighbour(int(one), float(by)) for one, by in zip(near[latent], cosines[latent], strict=True)]

    def _matches(self, latent: int) -> list[Match]:
        if self.scores is None:
            return []
        return [match for match in self.scores.of_latent(latent, N_MATCHES) if match.f1_train > 0]

    def _label(self, latent: int) -> tuple[str, float | None]:
        """The label that decides the class; else the selective one that fits best on the training half."""
        if self.scores is None:
            return "", None
        if self.classes is not None and self.classes.label[latent] >= 0:
            at = int(self.classes.label[latent])
            return self.scores.names[at], float(self.scores.f1[latent, at])
        for match in self._matches(latent):
            at = self.scores.label(match.label)
            if self.scores.selectivity[latent, at] >= MIN_SELECTIVITY:  # what is always on fits every frequent label
                return (match.label, match.f1) if match.f1 >= MIN_F1 else ("", None)
        return "", None

    def _hit(self, segment: Segment, rows: np.ndarray, values: np.ndarray) -> Hit:
        codes, excerpt = self.codes, self.excerpt(segment)
        clip = excerpt.clip
        bounds, order = self._rows_of
        frames = codes.frame[order[bounds[clip] : bounds[clip + 1]]]
        first = round(excerpt.start * codes.frames_per_second)
        last = min(int(frames[-1]) + 1, first + round(WINDOW_SECONDS * codes.frames_per_second))
        acts = np.zeros(last - first, dtype=np.float32)
        own = codes.clip[rows] == clip
        at = codes.frame[rows[own]] - first
        inside = (at >= 0) & (at < len(acts))
        acts[at[inside]] = values[own][inside]
        said: dict[str, str] = {}
        shown: dict[str, list[Interval]] = {}
        tiers = {} if self.labels is None else self.labels.tiers.get(segment.clip, {})
        end = excerpt.start + len(acts) / codes.frames_per_second
        for tier in self.tiers:
            intervals = [one for one in tiers.get(tier, ()) if one.end > excerpt.start and one.start < end]
            if intervals:
                shown[tier] = intervals
            value = self.labels.at(segment.clip, tier, segment.peak_time) if self.labels and intervals else None
            if value is not None:
                said[tier] = value
        return Hit(segment, self.items[segment.clip], excerpt, acts, said, shown)


def _items(codes: FeatureCodes, corpus: Corpus) -> dict[str, CorpusItem]:
    wanted = set(codes.clips)
    found = {item.id: item for item in corpus if item.id in wanted}
    missing = [clip for clip in codes.clips if clip not in found]
    if missing:
        raise AnalysisError(
            f"The codes are of {len(codes.clips)} clips, of which {corpus.name} lacks {len(missing)}, such as "
            f"{missing[0]!r}: expected the corpus that was harvested.{did_you_mean(missing[0], [i.id for i in corpus])}"
        )
    return found


def _tiers(labels: Labels | None, tiers: Sequence[str] | None) -> tuple[str, ...]:
    """Tiers to show: those asked for; else words and phones where there are any; else all."""
    known = () if labels is None else labels.tier_names
    for tier in tiers or ():
        if tier not in known:
            raise AnalysisError(
                f"The labels have no tier {tier!r}: they have {', '.join(known) or 'none'}.{did_you_mean(tier, known)}"
            )
    return tuple(tiers) if tiers is not None else tuple(t for t in _FIRST_TIERS if t in known) or tuple(known)
