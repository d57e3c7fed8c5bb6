"""What a latent does to the transcript: it is taken away where it is most active, and the decoder is run again.

    effects = token_effects(model, sae, corpus, codes, [1234], n_segments=3)
    print(effects[1234][0])          # " goodbye" 0.93 -> 0.41

A latent of the encoder has no direct path to the logits: the decoder reads its activation through attention alone. So
its effect is measured, not read off the weights: the latent is set to zero on the frames of one segment, with what the
SAE misses kept, and the probabilities of the model's own transcript are taken before and after. Beside it stands a
control: another latent that is active in the segment, as strong as can be found, taken away in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from hooked_whisper.analysis.codes import FeatureCodes
from hooked_whisper.analysis.edits import Span, Zero
from hooked_whisper.analysis.feature_stats import Segment, top_segments
from hooked_whisper.analysis.steering import Steerer, Steering
from hooked_whisper.analysis.steering_experiment import steered_frames
from hooked_whisper.audio import SAMPLE_RATE, WINDOW_SECONDS
from hooked_whisper.errors import AnalysisError
from hooked_whisper.inputs import DecoderInput
from hooked_whisper.model import HookedWhisper
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.saes.coding import SparseCoder, find_site
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.spliced_evaluation import Batch, listen, predicted, teacher_forced, transcripts

_SLACK = 0.005  # seconds around a span, so that the middles of its frames are safely inside
N_INSTEAD = 3


@dataclass(frozen=True)
class TokenEffect:
    """What zeroing a latent on one segment does to the model's own transcript of the clip.

    Attributes:
        clip, start, end: the segment, in seconds of the clip.
        transcript: the model's own, which is fed to the decoder.
        token: of the transcript, the one whose probability changes most; `before`, `after`: its probability.
        instead: at that place, the tokens that gain most: (token, before, after).
        total: change in the log-probability of the whole transcript, in nats; negative where the latent is needed.
        control: the same where another active latent is zeroed instead; None where no other is active there.
        control_latent: which.
    """

    clip: str
    start: float
    end: float
    transcript: str
    token: str
    before: float
    after: float
    instead: tuple[tuple[str, float, float], ...]
    total: float
    control: float | None
    control_latent: int | None

    def __str__(self) -> str:
        return f"{self.clip} {self.start:.2f} to {self.end:.2f} s: {self.token!r} {self.before:.2f} -> {self.after:.2f}"


def token_effects(
    model: HookedWhisper,
    sae: SparseCoder,
    corpus: Corpus,
    codes: FeatureCodes,
    latents: Sequence[int],
    *,
    n_segments: int = 3,
    progress: bool | None = None,
) -> dict[int, list[TokenEffect]]:
    """The effect of each latent at each of its strongest segments; a silent latent has none.

    Costs two decoder passes a segment, and one encoder pass a clip (one more for each pass where the SAE does not read
    the encoder's output). Clips longer than 30 s are passed over.

    Raises:
        AnalysisError: an SAE of the decoder, a basis, a latent that is not there, a clip that the corpus lacks.
        SaeError: an SAE that does not fit the model.
    """
    if isinstance(sae, Basis):
        raise AnalysisError("A basis has signed coefficients: token effects are those of an SAE's latents.")
    site = find_site(model, sae)
    if site.in_decoder:
        raise AnalysisError(f"{site.read} runs over tokens: token effects are those of latents in the encoder.")
    by_clip: dict[str, list[tuple[int, Segment]]] = {}
    for latent in latents:
        for segment in top_segments(codes, latent, n_segments):
            by_clip.setdefault(segment.clip, []).append((latent, segment))
    items = {item.id: item for item in corpus if item.id in by_clip}
    missing = [clip for clip in by_clip if clip not in items]
    if missing:
        raise AnalysisError(f"{corpus.name} has no clip {missing[0]!r}, which the codes have.")
    found: dict[tuple[int, str], TokenEffect] = {}
    bar = tqdm(by_clip.items(), desc="effects", unit="clip", disable=None if progress is None else not progress)
    for clip, wanted in bar:
        waveform = corpus.load(items[clip])
        if waveform is None or len(waveform) > WINDOW_SECONDS * SAMPLE_RATE:
            continue
        heard = _Heard.of(model, waveform, items[clip].language)
        for latent, segment in wanted:
            found[latent, clip] = heard.effect(sae, codes, latent, segment)
    return {
        latent: [found[latent, s.clip] for s in top_segments(codes, latent, n_segments) if (latent, s.clip) in found]
        for latent in latents
    }


@dataclass
class _Heard:
    """One clip with the unhooked model's transcript and the log-probabilities of its tokens."""

    model: HookedWhisper
    batch: Batch
    fed: DecoderInput
    text: list[int]
    seconds: float
    logp: Float[Tensor, "token vocab"]

    @classmethod
    def of(cls, model: HookedWhisper, waveform: Tensor, language: str | None) -> _Heard:
        batch = listen(model, [waveform], [language])
        text = transcripts(model, batch.encoder_out, batch.languages)[0]
        fed = teacher_forced(model, batch, [text])
        heard = cls(model, batch, fed, text, len(waveform) / SAMPLE_RATE, torch.empty(0, 0))
        heard.logp = heard.run(None)
        return heard

    @torch.no_grad()
    def run(self, steerer: Steerer | None) -> Float[Tensor, "token vocab"]:
        """Log-probabilities at the positions that predict the transcript's tokens and its end."""
        logits = self.model.decode(self.fed.tokens, steered_frames(self.model, self.batch, steerer))
        return logits[0, predicted(self.fed)[0]].float().log_softmax(-1).cpu()

    def without(self, sae: SparseCoder, latent: int, segment: Segment) -> Float[Tensor, "token vocab"]:
        start, end = max(0.0, segment.start - _SLACK), min(segment.end + _SLACK, self.seconds + _SLACK)
        return self.run(Steerer(self.model, Steering([Zero(latent, where=Span(start, end))], sae)))

    def effect(self, sae: SparseCoder, codes: FeatureCodes, latent: int, segment: Segment) -> TokenEffect:
        tokenizer = self.model._need_tokenizer()
        written = torch.tensor([*self.text, tokenizer.eot])[: len(self.logp)]
        at = torch.arange(len(written))
        changed = self.without(sae, latent, segment)
        before, after = self.logp[at, written].exp(), changed[at, written].exp()
        place = int((after - before).abs().argmax())
        gain = changed[place].exp() - self.logp[place].exp()
        gain[written[place]] = -1.0
        instead = [int(token) for token in gain.argsort(descending=True)[:N_INSTEAD] if gain[token] > 0]
        other = _another(codes, latent, segment)
        control = None
        if other is not None:
            logp = self.without(sae, other, segment)
            control = float((logp[at, written] - self.logp[at, written]).double().sum())
        return TokenEffect(
            clip=segment.clip,
            start=segment.start,
            end=segment.end,
            transcript=str(tokenizer.to_string(self.text, skip_special_tokens=True)).strip(),
            token=str(tokenizer.to_string([int(written[place])])),
            before=float(before[place]),
            after=float(after[place]),
            instead=tuple(
                (
                    str(tokenizer.to_string([token])),
                    float(self.logp[place, token].exp()),
                    float(changed[place, token].exp()),
                )
                for token in instead
            ),
            total=float((changed[at, written] - self.logp[at, written]).double().sum()),
            control=control,
            control_latent=other,
        )


def _another(codes: FeatureCodes, latent: int, segment: Segment) -> int | None:
    """The latent whose sum over a segment's frames comes nearest to this one's; None if it is alone there."""
    rows = codes.rows_of(segment.clip, segment.start, segment.end)
    sums = np.asarray(codes.acts[rows].sum(0)).reshape(-1)
    others = np.flatnonzero(sums)
    others = others[others != latent]
    return int(others[np.argmin(np.abs(sums[others] - sums[latent]))]) if len(others) else None
