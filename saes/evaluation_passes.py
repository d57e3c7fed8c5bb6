"""The two passes of an evaluation over a corpus or a store, a few clips at a time: memory does not grow with it.

The first measures reconstruction and firing, and finds the mean row and the covariance; the second, with these, splices
and measures the baselines. Both run the encoder: keeping its output would take 3 MB a clip.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import ConfigError
from hooked_whisper.mel import HOP_LENGTH, SAMPLE_RATE
from hooked_whisper.saes.baselines import BaselineName, Basis, Moments, fit_baseline
from hooked_whisper.saes.coding import Site, SparseCoder, hook_width, reconstruct, row_shape
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.error_rates import TranscriptErrors
from hooked_whisper.saes.reconstruction import ReconstructionSums
from hooked_whisper.saes.spliced_evaluation import (
    MEAN,
    ZERO,
    LossSums,
    Replacement,
    Spliced,
    listen,
    mean_ablation,
    rows_at,
    teacher_forced,
    transcripts,
    zero_ablation,
)

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.store import ActivationStore

PADDINGS = ("keep", "replace")
if TYPE_CHECKING:
    Padding = Literal["keep", "replace"]
else:
    Padding = str  # checked in `evaluate_sae`, with a message that says more than a type checker's
SAE = "sae"
SLACK = 16  # tokens that a spliced transcript may have over twice those of the unhooked one; one that loops has more
UNKNOWN = "unknown"  # the group of clips whose language the corpus does not say


@dataclass(frozen=True)
class Window:
    """At most 30 s of a clip; `text` is None for the parts of a longer one."""

    name: str
    language: str | None
    speaker: str | None
    waveform: Float[Tensor, "_"]
    text: str | None


@dataclass
class Measured:
    """What both passes find out, window by window.

    Attributes:
        names, languages, speakers: of each window.
        own_texts: greedy tokens of the unhooked model.
        reconstruction: of the SAE.
        moments: of what it should give back, in two halves: of the windows with even and with odd numbers.
        fitted_on: rows of elsewhere that baselines and mean are fitted on; None for those evaluated.
        bases, basis_reconstruction: the baselines, each for windows of even and of odd number, and how they do.
        on_transcript, on_reference, errors: what splicing does.
    """

    reconstruction: ReconstructionSums
    moments: tuple[Moments, Moments]
    fitted_on: Moments | None = None
    names: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    speakers: list[str | None] = field(default_factory=list)
    own_texts: list[list[int]] = field(default_factory=list)
    bases: dict[BaselineName, tuple[Basis, Basis]] = field(default_factory=dict)
    basis_reconstruction: dict[BaselineName, ReconstructionSums] = field(default_factory=dict)
    on_transcript: LossSums = field(default_factory=LossSums)
    on_reference: LossSums = field(default_factory=LossSums)
    errors: TranscriptErrors = field(default_factory=TranscriptErrors)

    def add_rows(
        self, sae: SparseCoder, site: Site, read: Tensor, written: Tensor, *, name: str, language: str | None,
        speaker: str | None,
    ) -> None:  # fmt: skip
        """One clip's rows at the hook that is read and at the one that is written."""
        group = language or UNKNOWN
        self.reconstruction.add(sae, read, None if site.read == site.write else written, group=group)
        self.moments[len(self.names) % 2].add(written)
        self.names.append(name)
        self.languages.append(group)
        self.speakers.append(speaker)

    @property
    def mean(self) -> Float[Tensor, " d_out"]:
        """The row that stands for an ablated one."""
        return (self.fitted_on or self.moments[0] + self.moments[1]).mean

    def fit_baselines(self, names: Sequence[BaselineName], device: torch.device) -> None:
        """Baselines that keep as many coefficients a row as the SAE has active latents, at most all.

        Unless they are fitted on rows of elsewhere, each half of the windows gets those fitted on the other.

        Raises:
            ConfigError: one window alone, which leaves nothing to fit on.
        """
        if not names:
            return
        if self.fitted_on is None and len(self.names) < 2:
            raise ConfigError(
                "One window leaves nothing to fit baselines on, which takes other rows than those they are tested on: "
                "pass fit_on=, or baselines=()."
            )
        sums = self.reconstruction
        even, odd = self.moments
        k = min(max(round(sum(sums.active) / sum(sums.n_rows)), 1), even.d_in)
        for name in names:
            first, second = (
                fit_baseline(name, fit, k=k, device=device)
                for fit in ((odd, even) if self.fitted_on is None else (self.fitted_on, self.fitted_on))
            )
            self.bases[name] = (first, second)
            self.basis_reconstruction[name] = ReconstructionSums(first.cfg.d_sae)

    def add_baselines(self, number: int, written: Tensor) -> None:
        """The rows of one window as the baselines see them."""
        for name, bases in self.bases.items():
            self.basis_reconstruction[name].add(bases[number % 2], written)


@dataclass(frozen=True)
class Passes:
    """A model, an SAE, and the clips to go through.

    Attributes:
        splice, padding, reference, transcribe: as in `evaluate_sae`.
        step: called once for every clip that was read.
    """

    model: HookedWhisper
    sae: SparseCoder
    site: Site
    corpus: Corpus
    items: Sequence[CorpusItem]
    batch_size: int
    splice: bool
    padding: Padding
    reference: bool
    transcribe: bool
    step: Callable[[], object]

    def start(self) -> Measured:
        """Nothing measured yet."""
        return _nothing_measured(self.model, self.sae, self.site)

    @torch.no_grad()
    def measure_rows(self, measured: Measured) -> None:
        """The first pass."""
        for windows in self._batches():
            batch = listen(self.model, [w.waveform for w in windows], [w.language for w in windows], self.site)
            fed = None
            if self.splice or self.site.in_decoder:
                texts = transcripts(self.model, batch.encoder_out, batch.languages)
                measured.own_texts += texts
                fed = teacher_forced(self.model, batch, texts)
            for w, (read, written) in zip(windows, rows_at(self.model, self.site, batch, fed), strict=True):
                measured.add_rows(
                    self.sae, self.site, read, written, name=w.name, language=w.language, speaker=w.speaker
                )

    @torch.no_grad()
    def measure_splicing(self, measured: Measured) -> None:
        """The second pass."""
        alike: dict[str, Replacement] = {
            SAE: _by(self.sae),
            ZERO: zero_ablation,
            MEAN: mean_ablation(measured.mean),
        }
        at = 0
        for windows in self._batches():
            batch = listen(self.model, [w.waveform for w in windows], [w.language for w in windows], self.site)
            numbers = range(at, at + len(windows))
            at += len(windows)
            own = measured.own_texts[numbers.start : numbers.stop]
            fed = teacher_forced(self.model, batch, own) if own else None
            for number, (_, written) in zip(numbers, rows_at(self.model, self.site, batch, fed), strict=True):
                measured.add_baselines(number, written)
            if not self.splice:
                continue
            assert fed is not None
            whole = self.padding == "replace"
            ways = {name: [way] * len(windows) for name, way in alike.items()}
            ways |= {name: [_by_basis(of[i % 2]) for i in numbers] for name, of in measured.bases.items()}
            spliced = {name: Spliced(self.model, self.site, each, batch, whole) for name, each in ways.items()}
            measured.on_transcript.add(self.model, batch, fed, spliced, numbers)
            known = [window.text is not None for window in windows]
            tokenizer = self.model._need_tokenizer()
            if self.reference and any(known):
                said = [list(tokenizer.to_tokens(window.text or "")) for window in windows]
                texts = teacher_forced(self.model, batch, said)
                measured.on_reference.add(self.model, batch, texts, spliced, numbers, known)
            if self.transcribe:
                written_now = spliced[SAE].transcripts([2 * len(text) + SLACK for text in own])
                for window, before, after, code in zip(windows, own, written_now, batch.languages, strict=True):
                    measured.errors.add(
                        str(tokenizer.to_string(before, skip_special_tokens=True)).strip(),
                        str(tokenizer.to_string(after, skip_special_tokens=True)).strip(),
                        window.text,
                        clip=window.name,
                        language=code,
                        tokenizer=tokenizer,
                    )

    def _windows(self) -> Iterator[Window]:
        length = self.model.cfg.n_mel_frames * HOP_LENGTH
        for item in self.items:
            waveform = self.corpus.load(item)
            self.step()
            if waveform is None:  # the corpus has reported it
                continue
            if len(waveform) <= length:
                yield Window(item.id, item.language, item.speaker, waveform, item.text)
                continue
            for at in range(0, len(waveform), length):
                name = f"{item.id} from {at / SAMPLE_RATE:g} s"
                yield Window(name, item.language, item.speaker, waveform[at : at + length], None)

    def _batches(self) -> Iterator[list[Window]]:
        batch: list[Window] = []
        for window in self._windows():
            batch.append(window)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch


def _by(sae: SparseCoder) -> Replacement:
    def replace(read: Tensor, written: Tensor) -> Tensor:
        return reconstruct(sae, read).reshape(written.shape)

    return replace


def _by_basis(basis: Basis) -> Replacement:
    def replace(_read: Tensor, written: Tensor) -> Tensor:
        return reconstruct(basis, written).reshape(written.shape)

    return replace


@dataclass(frozen=True)
class StorePasses:
    """The same over a store, which has rows and no sound: nothing can be spliced.

    Attributes:
        step: called once for every clip that was read.
    """

    model: HookedWhisper
    sae: SparseCoder
    site: Site
    store: ActivationStore
    clips: Sequence[StoredClip]
    step: Callable[[], object]

    def start(self) -> Measured:
        """Nothing measured yet."""
        return _nothing_measured(self.model, self.sae, self.site)

    def measure_rows(self, measured: Measured) -> None:
        """The first pass."""
        for clip in self.clips:
            read, written = (self._rows(hook, clip) for hook in (self.site.read, self.site.write))
            measured.add_rows(
                self.sae, self.site, read, written, name=clip.name, language=clip.language, speaker=clip.speaker
            )
            self.step()

    def measure_splicing(self, measured: Measured) -> None:
        """The second pass, for the baselines alone."""
        for number, clip in enumerate(self.clips):
            measured.add_baselines(number, self._rows(self.site.write, clip))
            self.step()

    def _rows(self, hook: str, clip: StoredClip) -> Tensor:
        rows = self.store.rows(hook, clip.first_row, clip.first_row + clip.n_rows)
        return rows.float().unflatten(-1, row_shape(self.model, hook))


@dataclass(frozen=True)
class StoredClip:
    """Where a clip's rows lie in a store, and what is known of it."""

    name: str
    language: str | None
    speaker: str | None
    first_row: int
    n_rows: int


def stored_clips(store: ActivationStore) -> list[StoredClip]:
    """The clips of a store, in its order."""
    table = store.clips
    known = [table[name].to_pylist() for name in ("clip", "language", "speaker", "first_row", "n_rows")]
    return [StoredClip(*values) for values in zip(*known, strict=True)]


def _nothing_measured(model: HookedWhisper, sae: SparseCoder, site: Site) -> Measured:
    width = hook_width(model, site.write)
    return Measured(ReconstructionSums(sae.cfg.d_sae), (Moments.none(width), Moments.none(width)))
