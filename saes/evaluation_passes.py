"""The two passes of an evaluation over a corpus, a batch of clips at a time, so that memory does not grow with it.

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

from hooked_whisper.mel import HOP_LENGTH, SAMPLE_RATE
from hooked_whisper.saes.baselines import BaselineName, Basis, Moments, fit_baseline
from hooked_whisper.saes.coding import Site, SparseCoder, hook_width, reconstruct
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

PADDINGS = ("keep", "replace")
if TYPE_CHECKING:
    Padding = Literal["keep", "replace"]
else:
    Padding = str  # checked in `evaluate_sae`, with a message that says more than a type checker's
SAE = "sae"
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
        reconstruction: of the SAE; `moments` of what it should give back.
        bases, basis_reconstruction: the baselines, and how they do.
        on_transcript, on_reference, errors: what splicing does.
    """

    reconstruction: ReconstructionSums
    moments: Moments
    names: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    speakers: list[str | None] = field(default_factory=list)
    own_texts: list[list[int]] = field(default_factory=list)
    bases: dict[BaselineName, Basis] = field(default_factory=dict)
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
        self.moments.add(written)
        self.names.append(name)
        self.languages.append(group)
        self.speakers.append(speaker)

    def fit_baselines(self, names: Sequence[BaselineName], device: torch.device) -> None:
        """Baselines that keep as many coefficients a row as the SAE has active latents, at most all."""
        sums = self.reconstruction
        k = round(sum(sums.active) / sum(sums.n_rows))
        k = min(max(k, 1), self.moments.d_in)
        self.bases = {name: fit_baseline(name, self.moments, k=k, device=device) for name in names}
        self.basis_reconstruction = {name: ReconstructionSums(basis.cfg.d_sae) for name, basis in self.bases.items()}

    def add_baselines(self, written: Tensor) -> None:
        """One clip's rows as the baselines see them."""
        for name, basis in self.bases.items():
            self.basis_reconstruction[name].add(basis, written.flatten(1))


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
        return Measured(ReconstructionSums(self.sae.cfg.d_sae), Moments(hook_width(self.model, self.site.write)))

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
        ways: dict[str, Replacement] = {
            SAE: lambda read, _: reconstruct(self.sae, read),
            ZERO: zero_ablation,
            MEAN: mean_ablation(measured.moments.mean),
            **{name: _of_basis(basis) for name, basis in measured.bases.items()},
        }
        at = 0
        for windows in self._batches():
            batch = listen(self.model, [w.waveform for w in windows], [w.language for w in windows], self.site)
            numbers = range(at, at + len(windows))
            at += len(windows)
            own = measured.own_texts[numbers.start : numbers.stop]
            fed = teacher_forced(self.model, batch, own) if own else None
            for _, written in rows_at(self.model, self.site, batch, fed):
                measured.add_baselines(written)
            if not self.splice:
                continue
            assert fed is not None
            whole = self.padding == "replace"
            spliced = {name: Spliced(self.model, self.site, way, batch, whole) for name, way in ways.items()}
            measured.on_transcript.add(self.model, batch, fed, spliced, numbers)
            known = [window.text is not None for window in windows]
            tokenizer = self.model._need_tokenizer()
            if self.reference and any(known):
                said = [list(tokenizer.to_tokens(window.text or "")) for window in windows]
                texts = teacher_forced(self.model, batch, said)
                measured.on_reference.add(self.model, batch, texts, spliced, numbers, known)
            if self.transcribe:
                written_now = spliced[SAE].transcripts()
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


def _of_basis(basis: Basis) -> Replacement:
    def replace(_read: Tensor, written: Tensor) -> Tensor:
        return reconstruct(basis, written.flatten(1)).reshape(written.shape)

    return replace
