"""Pictures show what is in the cache, at the right place, and leave matplotlib's global state alone."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from hooked_whisper import CacheError, ConfigError, HookedWhisper, MissingExtraError, WhisperCache
from hooked_whisper.analysis import plots
from hooked_whisper.speech import clips

CLIP = "vm-nobodyavail"
WRITTEN = ["Nobody", "is", "available", "to", "take", "your", "call", "at", "the", "moment", ".", "(end)"]


@pytest.fixture(scope="module")
def cache(shared_whisper_base: HookedWhisper) -> WhisperCache:
    """Everything about one English sentence of 2.8 s."""
    return shared_whisper_base.run_with_cache(clips("en", CLIP)[0].path, language="en")[1]


@pytest.fixture(autouse=True)
def untouched_matplotlib() -> Iterator[None]:
    """No test may leave a window, or a changed setting, behind."""
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in sys.modules:
        assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def texts(figure: Figure, axes: int = 0) -> list[str]:
    """What is written on an axes, in order, leaving out lines without text."""
    return [text.get_text() for text in figure.axes[axes].texts if text.get_text()]


def pixels(figure: Figure, axes: int = 0) -> np.ndarray:
    """The values of the image on an axes."""
    return np.asarray(figure.axes[axes].images[0].get_array())


def rows(figure: Figure) -> list[str]:
    """The labels of a heat map's rows."""
    return [label.get_text() for label in figure.axes[0].get_yticklabels()]


def line(figure: Figure, axes: int, number: int) -> np.ndarray:
    """Heights of a curve."""
    return np.asarray(figure.axes[axes].lines[number].get_ydata())


def test_mean_cross_attention_is_the_mean_of_the_alignment_heads(
    shared_whisper_base: HookedWhisper, cache: WhisperCache
) -> None:
    model = shared_whisper_base
    found = plots.mean_cross_attention(model, cache)
    total = torch.zeros_like(found)
    for layer, head in model.cfg.alignment_heads:
        total += cache[f"decoder.blocks.{layer}.cross_attn.hook_pattern"][0, head]
    torch.testing.assert_close(found, total / len(model.cfg.alignment_heads))
    torch.testing.assert_close(found.sum(-1), torch.ones(len(found)))
    one = plots.mean_cross_attention(model, cache, heads=[(5, 1)])
    torch.testing.assert_close(one, cache["decoder.blocks.5.cross_attn.hook_pattern"][0, 1])


def test_cross_attention_has_a_row_for_each_token_it_predicts(
    shared_whisper_base: HookedWhisper, cache: WhisperCache
) -> None:
    figure = plots.plot_cross_attention(shared_whisper_base, cache)
    top = figure.axes[0]
    assert rows(figure) == WRITTEN
    shown = pixels(figure)
    first = cache.prompt_lengths[0] - 1  # the prompt's last position predicts the first token
    expected = plots.mean_cross_attention(shared_whisper_base, cache)[first:, : cache.n_frames()]
    np.testing.assert_allclose(shown, expected.numpy())
    assert top.get_xlim() == (0.0, pytest.approx(cache.n_frames() * 0.02))
    # What the picture is for: the model looks further on with every word.
    peaks = shown[:10].argmax(-1)
    assert (np.diff(peaks) > 0).all()


def test_words_stand_at_their_times(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    timed = cache.words()
    for figure in (
        plots.plot_cross_attention(shared_whisper_base, cache),
        plots.plot_mel(shared_whisper_base, cache),
    ):
        assert texts(figure) == [word.text.strip() for word in timed]
        placed = [text.xy[0] for text in figure.axes[0].texts if isinstance(text, Annotation) and text.get_text()]
        assert placed == [word.start for word in timed]
    assert texts(plots.plot_mel(shared_whisper_base, cache, words=[])) == []
    assert texts(plots.plot_cross_attention(shared_whisper_base, cache, words=timed[:2])) == ["Nobody", "is"]


def test_words_do_not_overlap(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    figure = plots.plot_cross_attention(shared_whisper_base, cache)
    figure.draw_without_rendering()
    top = figure.axes[0]
    written = [text for text in top.texts if isinstance(text, Annotation) and text.get_text()]
    begins = [top.transData.transform((text.xy[0], 0))[0] * 72 / figure.dpi + text.xyann[0] for text in written]
    assert [text.get_rotation() for text in written] == [35] * 10
    # Slanted lines of 10 pt text that begin side by side need 10 pt between them, across their direction.
    assert min(np.diff(begins)) * math.sin(math.radians(35)) > 10.5
    assert max(abs(text.xyann[0]) for text in written) < 10.0  # and stay near their times


@given(st.lists(st.floats(0, 500), max_size=12), st.floats(0.5, 40))
def test_spread_keeps_order_and_distance_and_moves_little(wanted: list[float], gap: float) -> None:
    wanted = sorted(wanted)
    placed = plots.spread(wanted, gap)
    assert len(placed) == len(wanted)
    assert all(right - left >= gap - 1e-6 for left, right in zip(placed, placed[1:], strict=False))
    assert sum(placed) == pytest.approx(sum(wanted), abs=1e-6)  # least squares moves nothing on the whole
    if all(right - left >= gap for left, right in zip(wanted, wanted[1:], strict=False)):
        assert placed == pytest.approx(wanted, abs=1e-6)


def test_heads_has_every_head_and_frames_the_alignment_heads(
    shared_whisper_base: HookedWhisper, cache: WhisperCache
) -> None:
    figure = plots.plot_cross_attention_heads(shared_whisper_base, cache)
    cfg = shared_whisper_base.cfg
    assert len(figure.axes) == cfg.decoder.n_layers * cfg.decoder.n_heads
    orange = to_rgba(plots.COLOURS["cross"])
    framed = [i for i, ax in enumerate(figure.axes) if ax.spines["left"].get_edgecolor() == orange]
    assert [divmod(i, cfg.decoder.n_heads) for i in framed] == sorted(cfg.alignment_heads)
    shown = pixels(figure, 3 * cfg.decoder.n_heads + 1)
    pattern = cache["decoder.blocks.3.cross_attn.hook_pattern"][0, 1]
    np.testing.assert_array_equal(shown, pattern[cache.prompt_lengths[0] - 1 :, : cache.n_frames()].numpy())


def test_residual_norms_are_medians_without_padding(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    figure = plots.plot_residual_norms(shared_whisper_base, cache)
    stream = line(figure, 0, 0)
    lengths = cache["encoder.blocks.2.hook_resid_post"][0, : cache.n_frames()].norm(dim=-1)
    assert stream[3] == pytest.approx(lengths.quantile(0.5).item())
    everything = cache["encoder.blocks.2.hook_resid_post"][0].norm(dim=-1)
    assert stream[3] != pytest.approx(everything.median().item(), rel=1e-3)  # padding would have shown
    names = [curve.get_label() for curve in figure.axes[1].lines]
    assert names == ["residual stream", "self-attention", "cross-attention", "MLP"]
    written = cache["decoder.blocks.5.hook_cross_attn_out"][0].norm(dim=-1).median()
    assert line(figure, 1, 2)[-1] == pytest.approx(written.item())


def test_mel_shows_the_audio_without_its_padding(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    figure = plots.plot_mel(shared_whisper_base, cache)
    np.testing.assert_array_equal(pixels(figure), cache["hook_mel"][0, :, : 2 * cache.n_frames()].numpy())


def test_a_clip_of_a_batch_looks_as_it_does_alone(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    model = shared_whisper_base
    english, spanish = clips("en", CLIP)[0], clips("es", CLIP)[0]
    names = ["hook_mel", "decoder.blocks.*.cross_attn.hook_pattern"]
    _, both = model.run_with_cache([spanish.path, english.path], language=["es", "en"], names_filter=names)
    figure = plots.plot_cross_attention(model, both, clip=1)
    assert rows(figure) == WRITTEN
    np.testing.assert_allclose(pixels(figure), pixels(plots.plot_cross_attention(model, cache)), atol=1e-4)
    with pytest.raises(CacheError, match="no clip 2: this cache has 2"):
        plots.plot_mel(model, both, clip=2, words=[])


def test_a_cache_without_batch_dimension_will_do(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    names = ["hook_mel", "decoder.blocks.*.cross_attn.hook_pattern"]
    path = clips("en", CLIP)[0].path
    _, flat = shared_whisper_base.run_with_cache(path, language="en", names_filter=names, remove_batch_dim=True)
    figure = plots.plot_cross_attention(shared_whisper_base, flat)
    alone = plots.plot_cross_attention(shared_whisper_base, cache)
    np.testing.assert_allclose(pixels(figure), pixels(alone), atol=1e-5)


def test_what_cannot_be_drawn_says_why(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    model = shared_whisper_base
    with pytest.raises(ConfigError, match=r"no cross-attention head \(6, 0\): expected layer 0 to 5 and head 0 to 7"):
        plots.plot_cross_attention(model, cache, heads=[(6, 0)])
    with pytest.raises(ConfigError, match=r"pass heads=\[\(layer, head\), ...\]"):
        plots.mean_cross_attention(model, cache, heads=[])
    _, encoder_only = model.run_with_cache(clips("en", CLIP)[0].path, names_filter="hook_mel")
    with pytest.raises(CacheError, match="hook_pattern"):
        plots.plot_cross_attention(model, encoder_only)
    with pytest.raises(CacheError, match="hook_resid_pre"):
        plots.plot_residual_norms(model, encoder_only)


def test_files_are_the_same_every_time(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    def draw(kind: str) -> bytes:
        return plots.figure_bytes(plots.plot_mel(shared_whisper_base, cache), kind, dpi=40)  # type: ignore[arg-type]

    png, svg = draw("png"), draw("svg")
    assert png.startswith(b"\x89PNG\r\n")
    assert b"<svg" in svg[:1000]
    assert b"<text" not in svg  # outlines: no font of the reader's machine is needed
    assert (draw("png"), draw("svg")) == (png, svg)


def test_time_axis_is_where_the_picture_has_it(shared_whisper_base: HookedWhisper, cache: WhisperCache) -> None:
    figure = plots.plot_mel(shared_whisper_base, cache)
    left, right = plots.time_axis(figure)
    width = figure.get_size_inches()[0] * figure.dpi
    end = figure.axes[0].transData.transform((cache.n_frames() * 0.02, 0))[0]
    assert figure.axes[0].transData.transform((0, 0))[0] == pytest.approx(left * width)
    assert end == pytest.approx(right * width)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "hooked_whisper.analysis.plots")
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[demo\]'"):
        importlib.import_module("hooked_whisper.analysis.plots")
