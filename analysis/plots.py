"""Pictures of what Whisper hears, where it looks, and how its residual stream grows.

    from hooked_whisper.analysis.plots import plot_cross_attention
    logits, cache = model.run_with_cache("speech.wav")
    plot_cross_attention(model, cache).savefig("attention.png")

Every function takes a model and a cache of `run_with_cache` and returns a matplotlib `Figure` that belongs to no
window and no global state: save it, or let a notebook show it. Times are in seconds, one encoder frame is 20 ms.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.audio import FRAMES_PER_SECOND
from hooked_whisper.errors import CacheError, ConfigError, MissingExtraError

try:
    from matplotlib import rc_context
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
except ImportError as error:
    raise MissingExtraError(
        "Pictures need matplotlib, which cannot be imported: pip install 'hooked-whisper[demo]' (or [analysis])."
    ) from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from hooked_whisper.alignment import Word
    from hooked_whisper.cache import WhisperCache
    from hooked_whisper.model import HookedWhisper

INK, MUTED, RULE = "#1c2230", "#5b6475", "#d6dae3"
# One colour for each thing that writes into the residual stream; they differ in lightness, too.
COLOURS = {"resid": INK, "attn": "#0b6e99", "cross": "#c2410c", "mlp": "#6d8b1f"}
ATTENTION_MAP = LinearSegmentedColormap.from_list("attention", ["#ffffff", "#cfe3f1", "#5aa2cf", "#14507f", "#071c33"])


def plot_mel(
    model: HookedWhisper, cache: WhisperCache, *, clip: int = 0, words: Sequence[Word] | None = None
) -> Figure:
    """The log-mel spectrogram that the encoder reads, with the words at their times.

    Args:
        clip: which clip of the batch.
        words: what to write above; None takes `cache.words()`, an empty list writes nothing.

    Raises:
        CacheError: `hook_mel` is not in the cache.
    """
    timed = cache.words(clip) if words is None else words
    figure = _figure(max(8.0, 0.25 * len(timed)), 3.0)
    ax = figure.add_subplot()
    _draw_mel(ax, _of_clip(cache, "hook_mel", clip), _seconds(cache, clip))
    _write_words(ax, timed)
    return figure


def plot_cross_attention(
    model: HookedWhisper,
    cache: WhisperCache,
    *,
    clip: int = 0,
    heads: Sequence[tuple[int, int]] | None = None,
    words: Sequence[Word] | None = None,
) -> Figure:
    """Where in the sound the decoder looks for each token that it writes, above the spectrogram.

    A row is one token, labelled with the token being written: the attention of the position before it, whose
    output predicts it. The words on top stand at the times when they are said.

    Args:
        clip: which clip of the batch.
        heads: (layer, head) of the cross-attention heads to average; None takes the checkpoint's alignment heads, those
            that follow the sound (https://github.com/openai/whisper, `whisper/timing.py`).
        words: what to write above; None takes `cache.words()`, an empty list writes nothing.

    Raises:
        CacheError: the cache lacks what the patterns are made from, or `hook_mel`.
        ConfigError: no heads, or one that the model does not have.
    """
    weights = mean_cross_attention(model, cache, clip=clip, heads=heads)
    seconds = _seconds(cache, clip)
    labels, first = _written_tokens(cache, clip)
    shown = weights[first : first + len(labels), : round(seconds * FRAMES_PER_SECOND)]
    timed = cache.words(clip) if words is None else words
    figure = _figure(max(8.0, 0.25 * len(timed)), 2.6 + 0.24 * len(labels))
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[0.24 * len(labels) + 0.2, 1.1])
    extent = (0.0, seconds, len(labels) - 0.5, -0.5)
    norm = PowerNorm(0.5, vmin=0.0, vmax=float(shown.max()))
    image = top.imshow(
        shown.numpy(), aspect="auto", extent=extent, cmap=ATTENTION_MAP, norm=norm, interpolation="nearest"
    )
    top.set_yticks(range(len(labels)), labels)
    top.set_ylabel("token being written", color=MUTED, fontsize=9)
    _style(top)
    top.tick_params(axis="y", length=0)
    _draw_mel(bottom, _of_clip(cache, "hook_mel", clip), seconds)
    for word in timed:
        bottom.axvline(word.start, color="white", linewidth=0.6, alpha=0.6)
    bar = figure.colorbar(image, ax=top, fraction=0.03, pad=0.015, aspect=30)
    bar.set_label("attention (square-root scale)", color=MUTED, fontsize=8)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.ax.tick_params(colors=MUTED, labelsize=8, length=2)
    _write_words(top, timed)  # last: where they go depends on the width that is left
    return figure


def plot_cross_attention_heads(model: HookedWhisper, cache: WhisperCache, *, clip: int = 0) -> Figure:
    """Every cross-attention head of the decoder as a small picture: tokens down, time to the right.

    Each is scaled to its own maximum (square-root scale). The checkpoint's alignment heads stand in orange frames.

    Raises:
        CacheError: the cache lacks what the patterns are made from.
    """
    n_layers, n_heads = model.cfg.decoder.n_layers, model.cfg.decoder.n_heads
    seconds = _seconds(cache, clip)
    labels, first = _written_tokens(cache, clip)
    figure = _figure(1.05 * n_heads + 0.6, 0.95 * n_layers + 0.7)
    grid = figure.subplots(n_layers, n_heads, squeeze=False)
    aligned = set(model.cfg.alignment_heads)
    for layer in range(n_layers):
        pattern = _of_clip(cache, f"decoder.blocks.{layer}.cross_attn.hook_pattern", clip)
        for head in range(n_heads):
            ax = grid[layer][head]
            shown = pattern[head, first : first + len(labels), : round(seconds * FRAMES_PER_SECOND)]
            norm = PowerNorm(0.5, vmin=0.0, vmax=float(shown.max()))
            ax.imshow(shown.numpy(), aspect="auto", cmap=ATTENTION_MAP, norm=norm, interpolation="nearest")
            ax.set_xticks([])
            ax.set_yticks([])
            chosen = (layer, head) in aligned
            for spine in ax.spines.values():
                spine.set_color(COLOURS["cross"] if chosen else RULE)
                spine.set_linewidth(2.0 if chosen else 0.8)
            if layer == 0:
                ax.set_title(f"head {head}", fontsize=8, color=MUTED)
            if head == 0:
                ax.set_ylabel(f"layer {layer}", fontsize=8, color=MUTED)
    note = "orange: the checkpoint's alignment heads" if aligned else "this checkpoint publishes no alignment heads"
    figure.supxlabel(f"in each: time to the right, tokens downwards; {note}", fontsize=8, color=MUTED)
    return figure


def plot_residual_norms(model: HookedWhisper, cache: WhisperCache, *, clip: int = 0) -> Figure:
    """How long the residual stream's vectors are after each layer, and how much each part of a layer writes.

    Median over the clip's frames (padding left out) and over its tokens; the band around the residual stream holds
    the middle 80 %. Lengths are Euclidean, on a logarithmic axis.

    Raises:
        CacheError: residuals or outputs of a layer are not in the cache.
    """
    figure = _figure(8.0, 3.6)
    left, right = figure.subplots(1, 2)
    _draw_norms(left, model, cache, clip, "encoder")
    _draw_norms(right, model, cache, clip, "decoder")
    left.set_ylabel("length of the vectors", color=MUTED, fontsize=9)
    return figure


def mean_cross_attention(
    model: HookedWhisper,
    cache: WhisperCache,
    *,
    clip: int = 0,
    heads: Sequence[tuple[int, int]] | None = None,
) -> Float[Tensor, "pos frame"]:
    """Cross-attention averaged over `heads`, pairs of (layer, head); None takes the checkpoint's alignment heads.

    Raises:
        ConfigError: no heads, or one that the model does not have.
        CacheError: the cache lacks what the patterns are made from.
    """
    chosen = model.cfg.alignment_heads if heads is None else list(heads)
    if not chosen:
        raise ConfigError(
            "No cross-attention heads to average: this checkpoint publishes no alignment heads, so pass "
            "heads=[(layer, head), ...]."
        )
    n_layers, n_heads = model.cfg.decoder.n_layers, model.cfg.decoder.n_heads
    for layer, head in chosen:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise ConfigError(
                f"The decoder has no cross-attention head ({layer}, {head}): expected layer 0 to {n_layers - 1} and "
                f"head 0 to {n_heads - 1}."
            )
    patterns = {
        layer: _of_clip(cache, f"decoder.blocks.{layer}.cross_attn.hook_pattern", clip)
        for layer in {i for i, _ in chosen}
    }
    return torch.stack([patterns[layer][head] for layer, head in chosen]).mean(0)


def figure_bytes(figure: Figure, kind: Literal["png", "svg"] = "png", *, dpi: int = 150) -> bytes:
    """A picture as the bytes of a file, text as outlines (it looks the same everywhere) and without a date."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"metadata": {"Date": None}} if kind == "svg" else {"metadata": {"Software": None}}
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "hooked-whisper"}):
        figure.savefig(buffer, format=kind, dpi=dpi, **options)
    return buffer.getvalue()


def time_axis(figure: Figure) -> tuple[float, float]:
    """Where a figure's first time axis begins and ends, as fractions of the figure's width."""
    figure.draw_without_rendering()  # the layout is settled when it is drawn
    box = figure.axes[0].get_position()
    return float(box.x0), float(box.x1)


# Reading the cache


def _of_clip(cache: WhisperCache, name: str, clip: int) -> Tensor:
    """One clip's activation, float32 on the CPU, without its batch dimension."""
    value = cache[name]
    if not -cache.n_clips <= clip < cache.n_clips:
        raise CacheError(f"There is no clip {clip}: this cache has {cache.n_clips}, counted from 0.")
    return (value[clip] if cache.has_batch_dim else value).detach().float().cpu()


def _seconds(cache: WhisperCache, clip: int) -> float:
    """Length of the clip's audio, in whole frames."""
    return cache.n_frames(clip) / FRAMES_PER_SECOND


def _written_tokens(cache: WhisperCache, clip: int) -> tuple[list[str], int]:
    """Tokens that the model writes (text and end), as labels, and the position that predicts the first."""
    start = cache.prompt_lengths[clip]
    labels = [label.strip() or "␣" for label in cache.str_tokens(clip)[start:]]
    return [*labels, "(end)"], start - 1


# Drawing


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _style(ax: Axes) -> None:
    ax.tick_params(colors=INK, labelsize=9, length=3, width=0.8)
    for spine in ax.spines.values():
        spine.set_color(RULE)


def _draw_mel(ax: Axes, mel: Float[Tensor, "mel mel_frame"], seconds: float) -> None:
    shown = mel[:, : round(seconds * 2 * FRAMES_PER_SECOND)]
    ax.imshow(shown.numpy(), aspect="auto", origin="lower", extent=(0.0, seconds, 0.0, mel.shape[0]), cmap="magma")
    ax.set_xlabel("seconds", color=MUTED, fontsize=9)
    ax.set_ylabel("mel bin", color=MUTED, fontsize=9)
    ax.set_yticks([0, mel.shape[0] // 2, mel.shape[0]])
    _style(ax)


def _write_words(ax: Axes, words: Sequence[Word]) -> None:
    """Words above the axes, slanted, as near to their times as they go without touching; a line leads to each."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, so that the axes' width is known
    points = ax.get_window_extent().width * 72 / figure.dpi
    begin, end = ax.get_xlim()
    wanted = [(word.start - begin) / (end - begin) * points for word in words]
    placed = spread(wanted, gap=min(19.0, points / max(len(words), 1)))
    few = len(words) <= 20
    leader = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 0}
    for word, at, to in zip(words, wanted, placed, strict=True):
        ax.axvline(word.start, color=MUTED, linewidth=0.6, alpha=0.7)
        top: dict[str, Any] = {
            "xy": (word.start, 1.0), "xycoords": ("data", "axes fraction"), "textcoords": "offset points",
            "annotation_clip": False,
        }  # fmt: skip
        ax.annotate("", xytext=(to - at, 9), arrowprops=leader, **top)
        ax.annotate(
            word.text.strip(), xytext=(to - at, 10), rotation=35 if few else 60, rotation_mode="anchor",
            ha="left", va="bottom", fontsize=10 if few else 8, color=INK, **top,
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in the same order, at least `gap` apart, with the least squared distance to those `wanted`."""
    # Isotonic regression by pooling: neighbours that come too close share the mean of what they want.
    blocks: list[list[float]] = []
    for index, place in enumerate(wanted):
        blocks.append([place - index * gap, 1.0])
        while len(blocks) > 1 and blocks[-2][0] >= blocks[-1][0]:
            (low, n), (high, m) = blocks[-2:]
            blocks[-2:] = [[(low * n + high * m) / (n + m), n + m]]
    level = [mean for mean, size in blocks for _ in range(int(size))]
    return [place + index * gap for index, place in enumerate(level)]


def _draw_norms(ax: Axes, model: HookedWhisper, cache: WhisperCache, clip: int, stack: str) -> None:
    n_layers = model.cfg.stack(stack).n_layers
    if stack == "encoder":
        counted = cache.n_frames(clip)
    else:
        counted = len(cache.str_tokens(clip))

    def lengths(name: str) -> Tensor:
        return _of_clip(cache, name, clip)[:counted].norm(dim=-1)

    blocks = [f"{stack}.blocks.{layer}" for layer in range(n_layers)]
    stream = [lengths(f"{blocks[0]}.hook_resid_pre"), *(lengths(f"{block}.hook_resid_post") for block in blocks)]
    bands = torch.stack([v.quantile(torch.tensor([0.1, 0.5, 0.9])) for v in stream])
    layers = range(n_layers + 1)
    ax.fill_between(layers, bands[:, 0], bands[:, 2], color=COLOURS["resid"], alpha=0.12, linewidth=0)
    ax.plot(
        layers, bands[:, 1], color=COLOURS["resid"], linewidth=2.2, marker="o", markersize=4, label="residual stream"
    )
    writers = [("attn", "hook_attn_out", "self-attention"), ("mlp", "hook_mlp_out", "MLP")]
    if stack == "decoder":
        writers.insert(1, ("cross", "hook_cross_attn_out", "cross-attention"))
    for (colour, leaf, label), marker in zip(writers, "s^D", strict=False):
        medians = [float(lengths(f"{block}.{leaf}").median()) for block in blocks]
        ax.plot(
            range(1, n_layers + 1),
            medians,
            color=COLOURS[colour],
            linewidth=1.4,
            marker=marker,
            markersize=4,
            label=label,
        )
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(10.0, subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_xticks(layers, ["in", *map(str, range(n_layers))])
    ax.set_xlabel("after layer", color=MUTED, fontsize=9)
    ax.set_title(f"{stack}, {'frames' if stack == 'encoder' else 'tokens'}", loc="left", fontsize=10, color=INK)
    ax.legend(frameon=False, fontsize=8, labelcolor=INK)
    ax.grid(axis="y", color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    _style(ax)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
