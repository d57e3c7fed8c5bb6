"""Lenses: what earlier layers would have said, had the model ended there.

    _, cache = model.run_with_cache("speech.wav", language="en")
    lens = logit_lens(cache)                          # the decoder's stream after each layer, through the final norm
    lens.top_tokens(3), lens.rank, lens.probability, lens.plot()
    logit_lens(cache, tuned=TunedLens.load("lens.safetensors"))

    heard = encoder_lens(model, "speech.wav", language="en")
    heard.texts                                       # the transcript from each layer of the encoder

A lens reads a state that later layers were to go on with, so what it shows is a lower bound on what the state tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm
from transformers.modeling_outputs import BaseModelOutput

from hooked_whisper.analysis.checks import CACHE, check_clip, check_whole, expect
from hooked_whisper.analysis.figures import new_figure
from hooked_whisper.analysis.tuned_lens import TunedLens
from hooked_whisper.audio import AudioInput
from hooked_whisper.cache import WhisperCache
from hooked_whisper.errors import AnalysisError
from hooked_whisper.inputs import TextInput
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_NEW_TOKENS = 64  # early layers of the encoder make the decoder repeat itself


@dataclass(frozen=True)
class Lens:
    """Logits of each layer at each position.

    Attributes:
        labels: the states that were read, in the model's order; the last is the model's own.
        logits: what each gives.
        tokens: what the decoder was fed, prompt included.
        next_tokens: what comes after each position; the end token after a clip's last.
        mask: True where that is text or the end: prompt and padding are False.
        str_tokens: each clip's tokens as strings, without padding.
    """

    labels: tuple[str, ...]
    logits: Float[Tensor, "layer batch pos vocab"]
    tokens: Int[Tensor, "batch pos"]
    next_tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    str_tokens: tuple[tuple[str, ...], ...]

    @property
    def probability(self) -> Float[Tensor, "layer batch pos"]:
        """Of the token that comes next."""
        return self.log_probability.exp()

    @property
    def log_probability(self) -> Float[Tensor, "layer batch pos"]:
        """Of the token that comes next, in nats."""
        return self._at_next(self.logits.float().log_softmax(-1))

    @property
    def rank(self) -> Int[Tensor, "layer batch pos"]:
        """How many tokens are found likelier than the one that comes next: 0 is the top."""
        return (self.logits > self._at_next(self.logits)[..., None]).sum(-1)

    @property
    def divergence(self) -> Float[Tensor, "layer batch pos"]:
        """Kullback-Leibler divergence in nats of each layer's prediction from the last one's."""
        final = self.logits[-1].float().log_softmax(-1)
        return torch.stack([(final.exp() * (final - x.float().log_softmax(-1))).sum(-1) for x in self.logits])

    def top_tokens(self, k: int = 1) -> Int[Tensor, "layer batch pos k"]:
        """The `k` likeliest tokens, likeliest first.

        Raises:
            AnalysisError: k that is not 1 to the size of the vocabulary.
        """
        check_whole("k", k, 1, self.logits.shape[-1])
        return self.logits.topk(k, dim=-1).indices

    def mean(
        self, values: Float[Tensor, "layer batch pos"] | Int[Tensor, "layer batch pos"]
    ) -> Float[Tensor, " layer"]:
        """Mean of some of the above over text and end tokens."""
        return values[:, self.mask].double().mean(-1).float()

    def _at_next(self, values: Float[Tensor, "layer batch pos vocab"]) -> Float[Tensor, "layer batch pos"]:
        return values.gather(-1, self.next_tokens.expand(len(values), -1, -1)[..., None])[..., 0]

    def plot(self, *, clip: int = 0) -> Figure:
        """Layers up, the tokens to come to the right: the probability that each layer gives them.

        Raises:
            AnalysisError: no such clip. MissingExtraError: matplotlib is not installed.
        """
        check_clip(clip, len(self.tokens))
        places = self.mask[clip].nonzero().flatten().tolist()
        figure = new_figure(1.6 + 0.45 * len(places), 1.6 + 0.3 * len(self.labels))
        ax = figure.add_subplot()
        shown = self.probability[:, clip, places].detach().cpu().numpy()
        image = ax.imshow(shown, aspect="auto", origin="lower", vmin=0, vmax=1, cmap="viridis")
        following = [*self.str_tokens[clip][1:], "(end)"]
        ax.set_xticks(range(len(places)), [following[place].strip() or "␣" for place in places], rotation=60)
        ax.set_yticks(range(len(self.labels)), self.labels)
        ax.set_xlabel("token to come")
        figure.colorbar(image, ax=ax, label="probability")
        return figure


@torch.no_grad()
def logit_lens(cache: WhisperCache, *, tuned: TunedLens | None = None, incl_mid: bool = False) -> Lens:
    """What the decoder's stream says after each layer, through the final norm and the unembedding.

    nostalgebraist 2020, "interpreting GPT: the logit lens"; with `tuned`, each state goes through its own affine map
    first (Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens").

    Args:
        cache: of a run with the decoder's residuals kept, batch dimension and model there.
        tuned: a lens trained on this model; states within layers have none.
        incl_mid: also within layers, after self- and after cross-attention.

    Raises:
        AnalysisError: a cache without its model or batch dimension, a tuned lens that does not fit. CacheError:
            residuals that were not kept.
    """
    expect(cache, WhisperCache, CACHE)
    if tuned is not None:
        expect(tuned, TunedLens, "a tuned lens, such as TunedLens.load('lens.safetensors')")
    if cache.model is None or not cache.has_batch_dim:
        raise AnalysisError("A lens needs a cache that has its model and its batch dimension.")
    if tuned is None:
        logits, labels = cache.decoder.logit_lens(incl_mid=incl_mid, return_labels=True)
    else:
        if incl_mid:
            raise AnalysisError("A tuned lens has maps for the states between layers only: leave incl_mid out.")
        states, labels = cache.decoder.accumulated_resid(return_labels=True)
        logits = tuned.logits(cache.model, states)
    return _lens(cache.model, cache, logits, tuple(labels))


def _lens(model: HookedWhisper, cache: WhisperCache, logits: Tensor, labels: tuple[str, ...]) -> Lens:
    tokens, fed = cache.tokens, cache.token_mask
    end = 0 if model.tokenizer is None else model.tokenizer.eot
    following = torch.cat([tokens[:, 1:], tokens.new_full((len(tokens), 1), end)], dim=1)
    lengths = fed.sum(1, keepdim=True)
    at = torch.arange(tokens.shape[1], device=tokens.device)
    following = torch.where(at == lengths - 1, end, following)
    starts = torch.tensor(cache.prompt_lengths, device=tokens.device)[:, None] - 1
    named = [
        tuple(map(str, cache.clip_tokens(i)) if model.tokenizer is None else cache.str_tokens(i))
        for i in range(cache.n_clips)
    ]
    return Lens(labels, logits, tokens, following, fed & (at >= starts), tuple(named))


@dataclass(frozen=True)
class EncoderLens:
    """What the decoder makes of each layer of the encoder.

    Attributes:
        lens: logits on the same text from each layer, "0_pre" (what enters the first) to "final_post" (the model's).
        texts: the transcript of each clip from each layer, [layer][clip]; None where none were asked for.
    """

    lens: Lens
    texts: tuple[tuple[str, ...], ...] | None

    @property
    def labels(self) -> tuple[str, ...]:
        """The layers."""
        return self.lens.labels

    def plot(self, *, clip: int = 0) -> Figure:
        """As `Lens.plot`.

        Raises:
            AnalysisError: no such clip. MissingExtraError: matplotlib is not installed.
        """
        return self.lens.plot(clip=clip)


@torch.no_grad()
def encoder_lens(
    model: HookedWhisper,
    audio: AudioInput,
    text: TextInput = None,
    *,
    language: str | Sequence[str | None] | None = None,
    generate: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: bool | None = None,
) -> EncoderLens:
    """Lets the decoder read the encoder's stream after each layer, through the encoder's final norm.

    Langedijk et al. 2023, "DecoderLens: Layerwise Interpretation of Encoder-Decoder Transformers". The decoder has
    only ever read the last layer, so nonsense from an early one does not say that the sound's content is not there.

    Args:
        audio: clips of at most 30 s.
        text: what the decoder is fed; None takes the model's own transcript (from the last layer).
        language: name or code, or one for each clip; None detects it.
        generate: also transcribe greedily from each layer: one generation each.
        max_new_tokens: bound of these, prompt left out.
        progress: whether to show a bar; None shows it where standard error is a terminal.

    Raises:
        AnalysisError: a bound below 1. GenerationError: a model that cannot generate.
    """
    if max_new_tokens < 1:
        raise AnalysisError(f"max_new_tokens={max_new_tokens} must be at least 1.")
    names = ["encoder.blocks.*.hook_resid_pre", "encoder.blocks.*.hook_resid_post", "hook_logits"]
    _, cache = model.run_with_cache(audio, text, language=language, names_filter=names)
    states, labels = cache.encoder.accumulated_resid(apply_ln=True, return_labels=True)
    bar = tqdm(states, desc="encoder lens", unit="layer", disable=None if progress is None else not progress)
    logits, texts = [], []
    for frames in bar:
        logits.append(model.decode(cache.tokens, frames))
        if generate:
            texts.append(_transcripts(model, frames, cache.languages, max_new_tokens))
    lens = _lens(model, cache, torch.stack(logits), tuple(labels))
    return EncoderLens(lens, tuple(texts) if generate else None)


def _transcripts(
    model: HookedWhisper, frames: Float[Tensor, "batch frame d_model"], languages: list[str | None], bound: int
) -> tuple[str, ...]:
    """Greedy transcripts of what an encoder's layer holds."""
    codes = [code for code in languages if code is not None]
    known = {"language": codes, "task": "transcribe"} if codes else {}
    with model._as_generation():
        rows = model.generation_adapter().generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=frames),  # type: ignore[arg-type]
            return_timestamps=False,
            force_unique_generate_call=True,
            num_beams=1,
            do_sample=False,
            max_new_tokens=bound,
            **known,
        )
    return tuple(str(model.to_string(row, skip_special_tokens=True)) for row in rows.tolist())
