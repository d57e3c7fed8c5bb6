"""What the explorer shows: which latents fire when on one clip, and what is written when one of them is pushed.

    explorer = Explorer(model, load_sae("whisper-base/encoder.hook_out"))
    heard = explorer.hear("speech.wav")
    heard.fires(n=20, span=(0.2, 0.6))                   # rows of a table
    heard.plot([1555, 224])                              # over the spectrogram
    heard.steered("add", 1555, dose=3.0)                 # transcripts, controls beside them

`hooked-whisper explore` puts a page around it (`explorer_app`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.analysis.codes import FeatureCodes, sparse
from hooked_whisper.analysis.feature_rows import of_clip, of_search
from hooked_whisper.analysis.steered_transcripts import Mode, Steer, SteeredClips, SteeredText, dose_transcripts
from hooked_whisper.analysis.steering import ErrorTerm
from hooked_whisper.audio import SAMPLE_RATE, OneClip, load_audio
from hooked_whisper.errors import AnalysisError, AudioError
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.coding import SparseCoder, find_site

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLIP = "clip"
MOST_SHOWN = 12  # latents in one picture


class Explorer:
    """A model and an SAE of its encoder, ready to listen.

    Raises:
        AnalysisError: an SAE whose rows are no frames of 20 ms. SaeError: one that does not fit the model.
    """

    def __init__(self, model: HookedWhisper, sae: SparseCoder, *, hook: str | None = None) -> None:
        self.model, self.sae = model, sae
        site = find_site(model, sae, hook)
        if site.in_decoder or site.positions != "frame":
            raise AnalysisError(
                f"{site.read} runs over {site.positions}, and the explorer shows frames of 20 ms: pass an SAE of the "
                "encoder."
            )
        self.hook = site.read

    @property
    def n_latents(self) -> int:
        """Latents of the SAE."""
        return int(self.sae.cfg.d_sae)

    @property
    def seconds(self) -> float:
        """How long a clip may be."""
        return self.model.cfg.n_mel_frames / (2 * FRAMES_PER_SECOND)

    def hear(self, audio: OneClip, *, sampling_rate: int = SAMPLE_RATE, language: str | None = None) -> Heard:
        """Listens to a clip and transcribes it, in the language given or the one that is heard.

        Raises:
            AudioError: audio that cannot be read, or that is longer than a window. LanguageError: an unknown language.
        """
        waveform = load_audio(audio, sampling_rate=sampling_rate)
        seconds = len(waveform) / SAMPLE_RATE
        if seconds > self.seconds:
            raise AudioError(
                f"The clip lasts {seconds:.1f} s, and the explorer shows one window of {self.seconds:g} s: cut it."
            )
        return Heard(self, waveform, SteeredClips(self.model, self.sae, [waveform], [language], hook=self.hook))


@dataclass(frozen=True, eq=False)
class Heard:
    """A clip that was listened to.

    Attributes:
        waveform: mono, 16 kHz.
        clip: the model's and the SAE's side of it.
    """

    explorer: Explorer
    waveform: Float[Tensor, " sample"]
    clip: SteeredClips

    @property
    def text(self) -> str:
        """What the model writes."""
        return self.clip.texts[0]

    @property
    def language(self) -> str:
        """In which language."""
        return self.clip.languages[0] or "en"

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.waveform) / SAMPLE_RATE

    @cached_property
    def codes(self) -> FeatureCodes:
        """Which latents fire when."""
        acts = self.clip.codes(0).float().cpu().numpy()
        n = len(acts)
        return FeatureCodes(
            sparse.csr_array(acts),
            np.zeros(n, dtype=np.int32),
            np.arange(n, dtype=np.int32),
            (CLIP,),
            {},
            self.explorer.hook,
            float(FRAMES_PER_SECOND),
        )

    def fires(self, n: int = 20, span: tuple[float, float] | None = None) -> list[dict[str, Any]]:
        """What fires on the clip, by what each latent adds up to; of a span, what tells it from the rest of the clip.

        Raises:
            AnalysisError: a span without a frame, or one that leaves nothing to tell it from.
        """
        if span is None:
            return of_clip(self.codes)[:n]
        found = of_search(self.codes, CLIP, span, None, None, n)
        return [{name: value for name, value in row.items() if name != "clip"} for row in found]

    def activation(self, latent: int) -> Float[np.ndarray, " frame"]:
        """How strongly a latent fires on each frame.

        Raises:
            AnalysisError: a latent that is not there.
        """
        rows, values = self.codes.latent(latent)
        found = np.zeros(self.codes.n_rows, dtype=np.float32)
        found[rows] = values
        return found

    def magnitude(self, latent: int) -> tuple[float, bool]:
        """What to call a latent's typical magnitude, and whether it fires here: its mean where it does.

        For one that is silent on this clip it is the median of those that fire: a guess.

        Raises:
            AnalysisError: a latent that is not there.
        """
        _, values = self.codes.latent(latent)
        if len(values):
            return float(values.mean()), True
        known = self.clip.activity.magnitude
        return float(known[~known.isnan()].median()), False

    def steered(
        self,
        mode: Mode,
        latent: int,
        *,
        dose: float,
        magnitude: float | None = None,
        span: tuple[float, float] | None = None,
        error_term: ErrorTerm = "kept",
        n_random: int = 1,
        seed: int = 0,
    ) -> list[SteeredText]:
        """Transcripts: the model's, the SAE's alone, the steered one, and those with random latents.

        Args:
            magnitude: what dose 1 adds; None takes `magnitude(latent)`.
            span: seconds in which the latent is pushed; None: all of the clip.

        Raises:
            AnalysisError: as `dose_transcripts`; a mode that needs another latent, too.
        """
        typical, fires = self.magnitude(latent)
        given = magnitude if magnitude is not None else (None if fires else typical)
        steer = Steer(mode, latent, magnitude=given, spans=None if span is None else [[span]])
        return dose_transcripts(self.clip, steer, [dose], error_term=error_term, n_random=n_random, seed=seed)

    def plot(self, latents: Sequence[int], span: tuple[float, float] | None = None) -> Figure:
        """The spectrogram, and under it when each of some latents fires, each scaled to its own maximum.

        Raises:
            AnalysisError: a latent that is not there, none, or more than 12. MissingExtraError: matplotlib is not
                installed.
        """
        from hooked_whisper.analysis.figures import new_figure
        from hooked_whisper.analysis.plots import ATTENTION_MAP, INK, MUTED, _draw_mel, _style

        if not 0 < len(latents) <= MOST_SHOWN:
            raise AnalysisError(f"{len(latents)} latents: a picture shows 1 to {MOST_SHOWN}.")
        acts = np.stack([self.activation(latent) for latent in latents])
        shown = acts / np.maximum(acts.max(1, keepdims=True), 1e-9)
        end = self.codes.n_rows / FRAMES_PER_SECOND
        figure = new_figure(10, 2.4 + 0.26 * len(latents))
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[1.6, 0.26 * len(latents) + 0.1])
        mel = self.explorer.model.to_mel(self.waveform)[0].detach().float().cpu()
        _draw_mel(top, mel, self.seconds)
        top.set_xlabel("")
        bottom.imshow(
            shown, aspect="auto", extent=(0.0, end, len(latents) - 0.5, -0.5), cmap=ATTENTION_MAP, vmin=0, vmax=1,
            interpolation="nearest",
        )  # fmt: skip
        bottom.set_yticks(range(len(latents)), [str(latent) for latent in latents])
        bottom.set_ylabel("latent", color=MUTED, fontsize=9)
        bottom.set_xlabel("seconds", color=MUTED, fontsize=9)
        _style(bottom)
        for axis in (top, bottom):
            axis.set_xlim(0, self.seconds)
            for second in span or ():
                axis.axvline(second, color=INK, linewidth=0.8, linestyle="--")
        return figure
