"""Which cross-attention heads follow the audio: scored by where the decoder reads each token, found by intervention.

    scores = score_alignment_heads(model, [clip.path for clip in clips("en")], language="en")
    scores.ranking()[:10]           # (layer, head), best first
    scores.plot()

Nobody has to know when a word was said. For each token, stretches of frames are hidden from all cross-attention, one
after the other, and the token's log-probability falls where the decoder reads it. A head that follows the audio puts
its attention, at the position that predicts the token, on the frames that the token loses most by. That tells the
heads that time words from those that move through the audio, too, but one token late or early, which monotonicity
alone does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens.hook_points import HookPoint

from hooked_whisper.alignment import token_times
from hooked_whisper.analysis.checks import described, expect_all
from hooked_whisper.analysis.figures import new_figure
from hooked_whisper.audio import FRAMES_PER_SECOND, AudioInput
from hooked_whisper.cache import WhisperCache
from hooked_whisper.errors import AnalysisError, MissingExtraError
from hooked_whisper.hooks import HookFunction
from hooked_whisper.inputs import TextInput
from hooked_whisper.kv_cache import KeyValueCache
from hooked_whisper.model import HookedWhisper

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Head = tuple[int, int]  # layer, head
HEADS = "pairs of (layer, head), such as [(5, 1)]"
WIDTH, STEP = 10, 5  # frames of 20 ms
_AT_ONCE = 32  # stretches that are hidden in one pass
_PATTERN, _SCORES = "decoder.blocks.{}.cross_attn.hook_pattern", "decoder.blocks.{}.cross_attn.hook_attn_scores"


@dataclass(frozen=True)
class Reading:
    """Where in the audio one clip's decoder reads each token of its text.

    Attributes:
        effects: nats that a token's log-probability loses when a stretch is hidden, [token window].
        spans: the stretches, frames [start, end).
        patterns: cross-attention at the position that predicts each token, over the frames that hold audio.
        labels: the tokens.
    """

    effects: Float[Tensor, "token window"]
    spans: tuple[tuple[int, int], ...]
    patterns: Float[Tensor, "layer head token frame"]
    labels: tuple[str, ...]

    @property
    def times(self) -> Float[Tensor, " token"]:
        """Middle of the stretch that each token loses most by, in seconds."""
        middles = torch.tensor([(start + end) / 2 / FRAMES_PER_SECOND for start, end in self.spans])
        return middles[self.effects.argmax(1).cpu()]

    @property
    def weights(self) -> Float[Tensor, " token"]:
        """Nats that each token loses by its worst stretch, at least 0: how sure its time is."""
        return self.effects.max(1).values.clamp(min=0)

    def scores(self) -> Float[Tensor, "layer head"]:
        """How far each head attends where the tokens are read, see `alignment_scores`."""
        return alignment_scores(self.patterns, self.effects, self.spans)

    def head_times(self, heads: Sequence[Head]) -> Float[Tensor, " token"]:
        """Middle of each token in seconds, by dynamic time warping of these heads' attention, as word times are made.

        Raises:
            AnalysisError: no heads, or one that the model does not have.
        """
        check_heads(heads, *self.patterns.shape[:2])
        chosen = torch.stack([self.patterns[layer, head] for layer, head in heads])
        return torch.from_numpy(token_times(chosen, chosen.shape[-1])).mean(1).float()

    def timing_error(self, heads: Sequence[Head], *, least: float = 1.0) -> float:
        """Median distance in seconds of `head_times` to `times`, over tokens that lose `least` nats; NaN without any.

        Raises:
            AnalysisError: as `head_times`.
        """
        sure = self.weights.cpu() >= least
        return float((self.head_times(heads) - self.times)[sure].abs().median()) if bool(sure.any()) else float("nan")

    def plot(self) -> Figure:
        """Tokens down, time to the right: what is lost where.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = new_figure(8.0, 1.0 + 0.24 * len(self.labels))
        ax = figure.add_subplot()
        edges = (self.spans[0][0] / FRAMES_PER_SECOND, self.spans[-1][1] / FRAMES_PER_SECOND)
        image = ax.imshow(
            self.effects.clamp(min=0).cpu().numpy(), aspect="auto", extent=(*edges, len(self.labels) - 0.5, -0.5)
        )
        ax.set_yticks(range(len(self.labels)), [label.strip() or "␣" for label in self.labels])
        ax.set_xlabel("seconds that are hidden")
        figure.colorbar(image, ax=ax, label="nats lost")
        return figure


@dataclass(frozen=True)
class AlignmentScores:
    """How far each cross-attention head attends where the decoder reads the token that it is about to write.

    Attributes:
        per_clip: correlation of each head's attention with what hiding costs, in each clip, -1 to 1.
    """

    per_clip: Float[Tensor, "clip layer head"]

    @property
    def scores(self) -> Float[Tensor, "layer head"]:
        """Mean over clips."""
        return self.per_clip.mean(0)

    def ranking(self) -> list[Head]:
        """All heads as (layer, head), best first."""
        order = self.scores.flatten().argsort(descending=True, stable=True).tolist()
        return [divmod(place, self.per_clip.shape[2]) for place in order]

    def found(self, heads: Sequence[Head], first: int = 10) -> list[Head]:
        """Which of `heads` are among the `first` of the ranking, in its order.

        Raises:
            AnalysisError: a head that the model does not have.
        """
        check_heads(heads, *self.per_clip.shape[1:])
        return [head for head in self.ranking()[:first] if head in set(heads)]

    def plot(self, *, marked: Sequence[Head] = ()) -> Figure:
        """A map of layers and heads, the `marked` ones in frames.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = new_figure(1.2 + 0.6 * self.per_clip.shape[2], 1.0 + 0.5 * self.per_clip.shape[1])
        from matplotlib.patches import Rectangle

        ax = figure.add_subplot()
        bound = float(self.scores.abs().max()) or 1.0
        image = ax.imshow(self.scores.cpu().numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
        for layer, head in marked:
            ax.add_patch(Rectangle((head - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2))
        ax.set_xticks(range(self.per_clip.shape[2]))
        ax.set_yticks(range(self.per_clip.shape[1]))
        ax.set_xlabel("head")
        ax.set_ylabel("decoder layer")
        figure.colorbar(image, ax=ax, label="agreement with where tokens are read")
        return figure


def alignment_scores(
    patterns: Float[Tensor, "layer head token frame"],
    effects: Float[Tensor, "token window"],
    spans: Sequence[tuple[int, int]],
) -> Float[Tensor, "layer head"]:
    """Correlation, over tokens and stretches, of a head's attention with what hiding the stretch costs the token.

    Losses are taken for each token as shares of what it loses in all (gains count as 0). From attention and shares the
    means over tokens and over stretches are taken off first, so that a head which looks at the same frames for every
    token scores 0, and tokens count by how sharply they are read.

    Raises:
        AnalysisError: fewer than two tokens or stretches, so that nothing can move, or no token loses anything.
    """
    if min(effects.shape) < 2:
        raise AnalysisError(
            f"{effects.shape[0]} tokens and {effects.shape[1]} stretches show no movement: expected two of each. Take "
            "a longer clip or text, or a smaller step."
        )
    losses = effects.clamp(min=0)
    if not bool((losses > 0).any()):
        raise AnalysisError("No token loses anything when audio is hidden: does the text fit the audio?")
    shares = losses / losses.sum(1, keepdim=True).clamp(min=torch.finfo(losses.dtype).tiny)
    attention = torch.stack([patterns[..., start:end].sum(-1) for start, end in spans], dim=-1)
    a, b = _centred(attention.double()), _centred(shares.double())
    size = a.flatten(2).norm(dim=-1) * b.norm()
    return torch.where(size > 1e-12, (a * b).sum((-2, -1)) / size.clamp(min=1e-12), 0.0).float()


def _centred(x: Float[Tensor, "*place token window"]) -> Float[Tensor, "*place token window"]:
    return x - x.mean(-1, keepdim=True) - x.mean(-2, keepdim=True) + x.mean((-2, -1), keepdim=True)


def score_alignment_heads(
    model: HookedWhisper,
    audio: AudioInput,
    text: TextInput = None,
    *,
    language: str | Sequence[str | None] | None = None,
    width: int = WIDTH,
    step: int = STEP,
    progress: bool | None = None,
) -> AlignmentScores:
    """Scores every cross-attention head by how far it attends where each token is read.

    Costs one pass of the encoder for each clip, and one of the decoder for each `step` frames of it.

    Args:
        audio: clips of at most 30 s, as `HookedWhisper.forward` takes them.
        text: what is said in them; None takes the model's own transcripts.
        language: name or code, or one for each clip; None detects it.
        width: frames of 20 ms that are hidden at a time.
        step: frames from one stretch to the next.
        progress: whether to show a bar; None shows it where standard error is a terminal.

    Raises:
        AnalysisError: as `read_tokens` and `alignment_scores`.
    """
    readings = read_tokens(model, audio, text, language=language, width=width, step=step, progress=progress)
    return AlignmentScores(torch.stack([reading.scores() for reading in readings]))


def read_tokens(
    model: HookedWhisper,
    audio: AudioInput,
    text: TextInput = None,
    *,
    language: str | Sequence[str | None] | None = None,
    heads: Sequence[Head] | None = None,
    width: int = WIDTH,
    step: int = STEP,
    progress: bool | None = None,
) -> list[Reading]:
    """Where the decoder reads each token of each clip: what hiding stretches of audio from it costs.

    Hidden frames get no cross-attention in any layer; the rest of the attention is scaled up to 1. The encoder has
    heard the whole clip, so a frame may tell of its neighbours.

    Args:
        heads: hide from these heads alone, (layer, head); None hides from all.
        audio, text, language, width, step, progress: as for `score_alignment_heads`.

    Raises:
        AnalysisError: heads that do not exist, a width or step below 1, a clip without text.
    """
    if width < 1 or step < 1:
        raise AnalysisError(f"width={width} and step={step} must be at least 1 frame.")
    if heads is not None:
        check_heads(heads, model.cfg.decoder.n_layers, model.cfg.decoder.n_heads)
    with torch.no_grad():
        # Not the patterns: every step of a transcript would compute them openly.
        names = ["encoder.hook_out", "hook_logits"]
        _, cache = model.run_with_cache(audio, text, language=language, names_filter=names)
        clips = range(cache.n_clips)
        bar = tqdm(clips, desc="reading tokens", unit="clip", disable=None if progress is None else not progress)
        return [_read_clip(model, cache, clip, heads, width, step) for clip in bar]


def _read_clip(
    model: HookedWhisper, cache: WhisperCache, clip: int, heads: Sequence[Head] | None, width: int, step: int
) -> Reading:
    tokens, n_frames = cache.clip_tokens(clip), cache.n_frames(clip)
    first = cache.prompt_lengths[clip]
    if len(tokens) == first or n_frames == 0:
        raise AnalysisError(f"Clip {clip} has {len(tokens) - first} tokens of text and {n_frames} frames of audio.")
    rows = slice(first - 1, len(tokens) - 1)  # the positions that predict the text
    spans = tuple((start, min(start + width, n_frames)) for start in range(0, max(1, n_frames - width + step), step))
    spans = tuple(span for span in spans if span[0] < span[1])
    given = torch.tensor([tokens], device=model.device)
    heard = cache["encoder.hook_out"][clip : clip + 1]
    past = KeyValueCache()
    kept, keeping, _ = model.get_caching_hooks([_PATTERN.format(i) for i in range(model.cfg.decoder.n_layers)])
    with model.hooks(fwd_hooks=keeping):
        clean = _log_probabilities(model.decode(given, heard, past=past), given, rows)
    effects = torch.empty(len(spans), clean.shape[1])
    for at in range(0, len(spans), _AT_ONCE):
        some = spans[at : at + _AT_ONCE]
        hidden = torch.zeros(len(some), heard.shape[1], dtype=torch.bool, device=model.device)
        for row, (start, end) in enumerate(some):
            hidden[row, start:end] = True
        fed = given.expand(len(some), -1)
        with model.hooks(fwd_hooks=_hiding(model, hidden, heads)):
            logits = model.decode(fed, heard.expand(len(some), -1, -1), past=_Shared(past, len(some)))
        effects[at : at + _AT_ONCE] = (clean - _log_probabilities(logits, fed, rows)).cpu()
    patterns = torch.stack([kept[name][0, :, rows, :n_frames].float().cpu() for name in kept])
    return Reading(effects.T.contiguous(), spans, patterns, tuple(model.to_str_tokens(tokens[first:])))


class _Shared(KeyValueCache):
    """Keys and values of one clip's frames, shared by all rows of a batch, and no tokens yet."""

    def __init__(self, of: KeyValueCache, batch: int) -> None:
        super().__init__()
        self._of, self._batch = of, batch

    def frames(self, layer: int) -> Any:
        kept = self._of.frames(layer)
        assert kept is not None
        return tuple(x.expand(self._batch, -1, -1, -1) for x in kept)


def _log_probabilities(logits: Tensor, tokens: Tensor, rows: slice) -> Float[Tensor, "batch token"]:
    """Of each token of the text, given those before it."""
    wanted = tokens[:, rows.start + 1 : rows.stop + 1, None]
    return logits[:, rows].float().log_softmax(-1).gather(-1, wanted)[..., 0]


def _hiding(model: HookedWhisper, hidden: Tensor, heads: Sequence[Head] | None) -> list[tuple[str, HookFunction]]:
    """Hooks that keep cross-attention from the hidden frames of each row."""
    n_layers, n_heads = model.cfg.decoder.n_layers, model.cfg.decoder.n_heads
    deaf = torch.ones(n_layers, n_heads, dtype=torch.bool)
    if heads is not None:
        deaf = torch.zeros_like(deaf)
        for head in heads:
            deaf[head] = True

    def hook(layer: int) -> HookFunction:
        of_layer = deaf[layer].to(hidden.device)[None, :, None, None]

        def hide(scores: Tensor, hook: HookPoint) -> Tensor:
            return scores.masked_fill(hidden[:, None, None, : scores.shape[-1]] & of_layer, -torch.inf)

        return hide

    return [(_SCORES.format(layer), hook(layer)) for layer in range(n_layers) if bool(deaf[layer].any())]


def without_heads(heads: Sequence[Head]) -> list[tuple[str, HookFunction]]:
    """Hooks that knock out cross-attention heads: they read nothing, for `model.hooks(fwd_hooks=...)`.

    A head that the model does not have is an AnalysisError when its layer runs, a layer a HookNameError before.
    """
    expect_all(heads, tuple, HEADS)

    def hook(of_layer: list[int]) -> HookFunction:
        def knock_out(pattern: Tensor, hook: HookPoint) -> Tensor:
            check_heads([(0, head) for head in of_layer], 1, pattern.shape[1])
            pattern = pattern.clone()
            pattern[:, of_layer] = 0
            return pattern

        return knock_out

    layers = sorted({layer for layer, _ in heads})
    return [(_PATTERN.format(layer), hook([h for of, h in heads if of == layer])) for layer in layers]


def view_heads(reading: Reading, heads: Sequence[Head]) -> Any:
    """A circuitsvis view: the text, each token coloured by the second at which a head, of those named, looks.

    Raises:
        AnalysisError: no heads, or one that the model does not have. MissingExtraError: circuitsvis is not installed.
    """
    check_heads(heads, *reading.patterns.shape[:2])
    try:
        from circuitsvis.tokens import colored_tokens_multi
    except ImportError as error:
        raise MissingExtraError(
            "This view needs circuitsvis, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    seconds = torch.stack([reading.patterns[head].argmax(-1) for head in heads], dim=-1) / FRAMES_PER_SECOND
    labels = [f"{layer}.{head}" for layer, head in heads]
    return colored_tokens_multi(list(reading.labels), seconds, labels=labels)


def check_heads(heads: Sequence[Head], n_layers: int, n_heads: int) -> None:
    """Raises AnalysisError unless all are (layer, head) of the decoder, at least one."""
    pairs = expect_all(heads, tuple, HEADS)
    if not pairs:
        raise AnalysisError("No heads were given: expected pairs of (layer, head).")
    for pair in pairs:
        if len(pair) != 2 or not all(isinstance(number, int) for number in pair):
            raise AnalysisError(f"Expected {HEADS}, got {described(pair)}.")
        layer, head = pair
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise AnalysisError(
                f"There is no cross-attention head ({layer}, {head}): expected layer 0 to {n_layers - 1} and head 0 to "
                f"{n_heads - 1}."
            )
