"""Phones of real speech with their times: the phones are known from the text, when each is said is found.

    with Espeak() as espeak:
        said = pronounce(espeak, {"hello": "Hello, world."}, "en-us")
    aligner = PhoneAligner.learn(synthetic_store, synthetic.labels, "encoder.blocks.3.hook_resid_post")
    found = aligner.align(real_store, said)
    found.labels["hello"]["phone"]

A text says which phones come, and in which order. Linear discriminants, learnt on synthetic speech whose phones have
exact times, say how much each frame of the encoder is like each phone; the best path through both says when each phone
is (Viterbi 1967). Every phone lasts at least a frame (20 ms), and silence may stand between any two. Phones are
espeak-ng's idea of how the text is said, which a speaker need not share: `left_out` names the clips that do not fit.

The times come from the model's own activations. What a latent of the same model is later found to do at these times
leans on that: the identity of a phone is the text's, its edges are the discriminants'. Compare with an aligner of
another make (Montreal Forced Aligner, PocketSphinx: `read_labels` reads their TextGrids and tables) where it matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float, Int

from hooked_whisper.analysis.espeak import Espeak
from hooked_whisper.analysis.frame_labels import frame_labels
from hooked_whisper.analysis.labels import Interval, Labels
from hooked_whisper.errors import AnalysisError
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.saes.store import ActivationStore

if TYPE_CHECKING:
    Unlearnt = Literal["leave out", "anywhere"]
else:
    Unlearnt = str  # checked here, with a message that says more than a type checker's

SILENCE = 0  # its class; phones count from 1
# Of the mean variance, added to each: 512 neurons are not measured well enough to be divided out.
SHRINKAGE = 1e-3

# Words, each with its phones.
Pronunciation = Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Aligned:
    """Phones and words of clips, with their times.

    Attributes:
        labels: tiers "phone" and "word" of the clips that were aligned.
        confidence: clip -> the mean over its phones of how probable the discriminants take them to be where they were
            put, silence and all phones being equally common. All clips that could be aligned, those below the threshold
            among them.
        left_out: clip -> why it has no labels.
    """

    labels: Labels
    confidence: dict[str, float]
    left_out: dict[str, str]


def pronounce(
    espeak: Espeak, texts: Mapping[str, str], voice: str
) -> dict[str, tuple[tuple[str, tuple[str, ...]], ...]]:
    """How espeak-ng says texts: for each its words, each with its phones in IPA.

    Args:
        texts: clip -> what is said in it.
        voice: a language of espeak-ng's: "es", "en-us".

    Raises:
        AnalysisError: a voice that there is not, or a text of which nothing is said, with the clip's name.
    """
    found = {}
    for clip, text in texts.items():
        try:
            tiers = espeak.say(text, voice).tiers
        except AnalysisError as error:
            raise AnalysisError(f"Clip {clip!r}: {error} Leave the clip out, or mend its text.") from error
        phones = tiers["phone"]
        words = tiers["word"] or (Interval(phones[0].start, phones[-1].end, text.strip()),)
        starts = np.array([word.start for word in words])
        own: list[list[str]] = [[] for _ in words]
        for phone in phones:  # a phone before the first word, or between two, goes with the word before it
            own[max(int(np.searchsorted(starts, (phone.start + phone.end) / 2, side="right")) - 1, 0)].append(
                phone.value
            )
        found[clip] = tuple((word.value, tuple(of)) for word, of in zip(words, own, strict=True) if of)
    return found


@dataclass(frozen=True)
class PhoneAligner:
    """Linear discriminants of phones, and the search for the best times.

    Attributes:
        model, hook: whose activations it reads.
        phones: that it knows, in IPA; class 0 is silence, class i + 1 the phone at i.
        weight, bias: of the discriminants: a row x has scores x @ weight + bias.
    """

    model: str
    hook: str
    phones: tuple[str, ...]
    weight: Float[np.ndarray, "width phone"]
    bias: Float[np.ndarray, " phone"]

    @classmethod
    def learn(cls, store: ActivationStore, labels: Labels, hook: str, *, min_rows: int = 20) -> PhoneAligner:
        """Learns from speech whose phones have times, best of one language: linear discriminant analysis.

        Frames of a labelled clip in which no phone is are silence. A frame's moment is its start, where the encoder's
        convolutions are centred.

        Args:
            store: activations.
            labels: a tier "phone" of the store's clips.
            min_rows: frames that a phone has at least; rarer ones are not learnt, and count as no frames at all.

        Raises:
            AnalysisError: a store of tokens or mel frames, no labels of these clips, fewer than two phones with so many
                frames, or no silence. StoreError: a hook that the store does not have.
        """
        _need_frames(store)
        clip, frame, clips = _rows(store)
        table = frame_labels(labels, clip, frame, clips, tiers=["phone"], centre=0.0)
        names = [name.partition("=")[2] for name in table.names]
        common = np.flatnonzero(table.counts >= min_rows)
        label = np.full(len(clip), -1)
        label[slice(None) if table.known is None else table.known.toarray()[:, 0]] = SILENCE
        coordinates = table.matrix.tocoo()
        place = np.full(len(names), -1)
        place[common] = np.arange(len(common)) + 1
        label[coordinates.row] = place[coordinates.col]
        n_silent = int((label == SILENCE).sum())
        if len(common) < 2 or n_silent < min_rows:
            raise AnalysisError(
                f"{len(common)} phones have {min_rows} frames or more, and silence has {n_silent} frames: expected at "
                f"least two phones and {min_rows} frames of silence to learn from."
            )
        rows = store.rows(hook, 0, store.n_rows).double().numpy()
        rows, label = rows[label >= 0], label[label >= 0]
        sizes = np.bincount(label, minlength=len(common) + 1)[:, None]
        sums = np.zeros((len(sizes), rows.shape[1]))
        np.add.at(sums, label, rows)
        means = sums / sizes
        # Within classes: the second moment of all less that of the means.
        covariance = (rows.T @ rows - means.T @ (means * sizes)) / len(rows)
        covariance += SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        weight = np.linalg.solve(covariance, means.T)
        return cls(store.model_name, hook, tuple(names[at] for at in common), weight, -(weight * means.T).sum(0) / 2)

    def log_probabilities(self, rows: Float[np.ndarray, "frame width"]) -> Float[np.ndarray, "frame phone"]:
        """Of silence and each phone, at each frame, were all equally common."""
        scores = rows.astype(np.float64) @ self.weight + self.bias
        scores -= scores.max(1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(1, keepdims=True))

    def align(
        self,
        store: ActivationStore,
        said: Mapping[str, Pronunciation],
        *,
        min_confidence: float = 0.5,
        unlearnt: Unlearnt = "leave out",
    ) -> Aligned:
        """When each phone and word of a store's clips is said.

        Args:
            store: activations of the same model and hook.
            said: clip -> words with their phones: `pronounce`. Clips without are left out, and named.
            min_confidence: clips below it are left out: what they say is another text, or said otherwise.
            unlearnt: of clips with a phone that was not learnt: "leave out", or "anywhere", which takes every frame to
                be as much like that phone as like the average one, so that its neighbours say where it is.

        Raises:
            AnalysisError: a store of another model, no clip that could be aligned, an unknown `unlearnt`, or a
                confidence that is not between 0 and 1.
                StoreError: a hook that the store does not have.
        """
        if not 0 <= min_confidence <= 1:
            raise AnalysisError(f"min_confidence={min_confidence}: expected 0 to 1.")
        if unlearnt not in ("leave out", "anywhere"):
            raise AnalysisError(f"unlearnt={unlearnt!r}: expected 'leave out' or 'anywhere'.")
        _need_frames(store)
        if store.model_name != self.model:
            raise AnalysisError(
                f"The store is of {store.model_name}, the aligner learnt from {self.model}: harvest from that one."
            )
        number = {phone: at + 1 for at, phone in enumerate(self.phones)}
        tiers: dict[str, dict[str, tuple[Interval, ...]]] = {}
        confidence: dict[str, float] = {}
        left_out: dict[str, str] = {}
        spans = zip(*(store.clips[name].to_pylist() for name in ("clip", "first_row", "n_rows")), strict=True)
        for clip, first, count in spans:
            words = said.get(clip)
            phones = [phone for _, own in words or () for phone in own]
            unknown = dict.fromkeys(phone for phone in phones if phone not in number)
            repeats = sum(one == next_ for one, next_ in zip(phones, phones[1:], strict=False))
            if not phones or words is None:
                left_out[clip] = "its pronunciation was not given"
            elif unknown and unlearnt == "leave out":
                left_out[clip] = f"it has {', '.join(unknown)}, which the aligner has not learnt"
            elif len(phones) + repeats > count:
                left_out[clip] = f"{len(phones)} phones do not fit into {count} frames"
            else:
                found = self.log_probabilities(store.rows(self.hook, first, first + count).numpy())
                found = np.pad(found, ((0, 0), (0, len(unknown))), constant_values=-np.log(found.shape[1]))
                numbers = number | {phone: len(number) + 1 + at for at, phone in enumerate(unknown)}
                classes = [numbers[phone] for phone in phones]
                index = best_path(found, classes)
                likely = [np.exp(found[index == place, phone]).mean() for place, phone in enumerate(classes)]
                confidence[clip] = float(np.mean(likely))
                if confidence[clip] < min_confidence:
                    left_out[clip] = f"confidence {confidence[clip]:.2f}, below {min_confidence:g}"
                    continue
                tiers[clip] = _intervals(index, words, count / FRAMES_PER_SECOND)
        if not tiers:
            some = next(iter(left_out.items()), None)
            raise AnalysisError(
                f"None of {len(store.clips)} clips could be aligned"
                + (f": {some[0]!r}, {some[1]}." if some else ": the store has none.")
                + " Clips are called as the store calls them."
            )
        durations = dict(zip(store.clips["clip"].to_pylist(), store.clips["n_rows"].to_pylist(), strict=True))
        return Aligned(
            Labels(tiers, {clip: durations[clip] / FRAMES_PER_SECOND for clip in tiers}), confidence, left_out
        )


def best_path(scores: Float[np.ndarray, "frame phone"], phones: Sequence[int]) -> Int[np.ndarray, " frame"]:
    """Which of the phones that follow each other each frame belongs to, as its place in `phones`; -1 is silence.

    The path with the highest sum of scores: each phone lasts a frame or more, silence (class 0) may stand before,
    after and between them, and has to between two that are the same (of which one alone could not be told).

    Args:
        scores: log-probabilities of silence and each phone.
        phones: classes, in the order in which they are said.

    Raises:
        AnalysisError: more phones than fit into the frames, or none.
    """
    sequence = np.asarray(phones)
    least = len(sequence) + int((sequence[1:] == sequence[:-1]).sum())
    if not len(sequence) or least > len(scores):
        raise AnalysisError(
            f"{len(sequence)} phones, which last {least} frames or more, do not fit into {len(scores)}."
        )
    # States: silence, phone, silence, phone, ..., silence.
    state = np.full(2 * len(sequence) + 1, SILENCE)
    state[1::2] = sequence
    passes = np.zeros(len(state), dtype=bool)  # silence before this phone may be left out
    passes[3::2] = sequence[1:] != sequence[:-1]
    best = np.full(len(state), -np.inf)
    best[:2] = scores[0, state[:2]]
    came_from = np.zeros((len(scores), len(state)), dtype=np.intp)
    never = np.full(2, -np.inf)
    for at in range(1, len(scores)):
        two_before = np.where(passes, np.concatenate([never, best[:-2]]), -np.inf)
        choices = np.stack([best, np.concatenate([never[:1], best[:-1]]), two_before])
        came_from[at] = choices.argmax(0)
        best = choices.max(0) + scores[at, state]
    path = np.empty(len(scores), dtype=np.intp)
    path[-1] = len(state) - 1 if best[-1] >= best[-2] else len(state) - 2
    for at in range(len(scores) - 1, 0, -1):
        path[at - 1] = path[at] - came_from[at, path[at]]
    return np.where(path % 2 == 1, path // 2, -1)


def _need_frames(store: ActivationStore) -> None:
    found = store.describe()
    if found["rate"] != FRAMES_PER_SECOND:
        raise AnalysisError(
            f"{store} has {found['position']}s, {found['rate'] or 'at no fixed rate'} a second: expected the encoder's "
            f"frames, {FRAMES_PER_SECOND} a second."
        )


def _rows(store: ActivationStore) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Clip and frame of each row, and the clips."""
    clips: list[Any] = store.clips["clip"].to_pylist()
    clip = np.repeat(np.arange(len(clips)), store.clips["n_rows"].to_numpy())
    return clip, store.frames["frame"].to_numpy(), clips


def _intervals(
    index: Int[np.ndarray, " frame"], words: Pronunciation, seconds: float
) -> dict[str, tuple[Interval, ...]]:
    """Phones and words of a clip. A frame stands for the 20 ms around its start."""

    def interval(first: int, last: int, value: str) -> Interval:
        start = max(0.0, (first - 0.5) / FRAMES_PER_SECOND)
        return Interval(start, min(seconds, (last + 0.5) / FRAMES_PER_SECOND), value)

    phones = [phone for _, own in words for phone in own]
    n = len(phones)
    first = [int(np.flatnonzero(index == at)[0]) for at in range(n)]
    last = [int(np.flatnonzero(index == at)[-1]) for at in range(n)]
    ends = [int(end) for end in np.cumsum([len(own) for _, own in words])]
    starts = [0, *ends[:-1]]
    return {
        "phone": tuple(interval(*span) for span in zip(first, last, phones, strict=True)),
        "word": tuple(
            interval(first[start], last[end - 1], word)
            for (word, _), start, end in zip(words, starts, ends, strict=True)
        ),
    }
