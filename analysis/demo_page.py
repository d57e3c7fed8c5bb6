"""The demo's pictures and its page; the flow is in `hooked_whisper.analysis.demo`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hooked_whisper.analysis.page import Page, PageClip, PageWord, Picture, Section, Table
from hooked_whisper.analysis.plots import (
    figure_bytes,
    plot_cross_attention,
    plot_cross_attention_heads,
    plot_mel,
    plot_residual_norms,
    time_axis,
)
from hooked_whisper.hook_table import HookRow
from hooked_whisper.speech import Clip

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from hooked_whisper.cache import WhisperCache
    from hooked_whisper.model import HookedWhisper

LANGUAGES = {"en": "English", "es": "Spanish", "fr": "French", "it": "Italian", "ru": "Russian"}
LICENCES = {"en": "CC BY-SA 3.0", "es": "CC BY-SA 3.0", "fr": "CC BY-SA 3.0", "it": "CC BY 3.0", "ru": "CC BY 3.0"}


@dataclass(frozen=True)
class Heard:
    """A clip and what the model wrote."""

    clip: Clip
    text: str


@dataclass(frozen=True)
class Edit:
    """An edit of the model while it wrote, and what came of it."""

    what: str
    text: str


@dataclass(frozen=True)
class DemoMaterial:
    """What the demo found out, for its page.

    Attributes:
        heard: every clip that was transcribed.
        looked_into: the clips with a picture each, with a cache of their cross-attention; the first has a full cache.
        edits: what the model wrote under edits of the first of these.
        hooks: the hook table.
    """

    heard: list[Heard]
    looked_into: list[tuple[Heard, WhisperCache]]
    edits: list[Edit]
    hooks: list[HookRow]


def write_pictures_and_page(
    model: HookedWhisper, material: DemoMaterial, folder: Path, say: Callable[[str], None]
) -> tuple[Path, list[Path]]:
    """Writes the pictures as PNG and the page `index.html` with the same pictures inside; says each name.

    Returns:
        The page's path and the pictures'.
    """
    pictures: list[Path] = []

    def keep(figure: Figure, name: str) -> bytes:
        pictures.append(folder / f"{name}.png")
        pictures[-1].write_bytes(figure_bytes(figure, "png"))
        say(str(pictures[-1]))
        return figure_bytes(figure, "svg")

    clips = []
    for heard, cache in material.looked_into:
        figure = plot_cross_attention(model, cache)
        clips.append(
            _page_clip(heard, cache, keep(figure, f"cross_attention_{heard.clip.language}"), time_axis(figure))
        )
    cache = material.looked_into[0][1]
    language = material.looked_into[0][0].clip.language
    mel = plot_mel(model, cache)
    inside = {
        "mel": keep(mel, f"mel_{language}"),
        "heads": keep(plot_cross_attention_heads(model, cache), f"cross_attention_heads_{language}"),
        "norms": keep(plot_residual_norms(model, cache), f"residual_norms_{language}"),
    }
    page = folder / "index.html"
    page.write_text(_page(model, material, clips, inside).to_html(), encoding="utf-8")
    return page, pictures


def _page_clip(heard: Heard, cache: WhisperCache, svg: bytes, axis: tuple[float, float]) -> PageClip:
    clip = heard.clip
    picture = Picture(
        svg,
        alt=f"Heat map, tokens downwards and time to the right, while Whisper writes: {heard.text} Each token's "
        "attention lies where its word is said, so dark cells run from top left to bottom right. Below it, the "
        "spectrogram.",
        caption="Where the decoder looks while it writes each token: cross-attention, mean of the alignment heads. "
        "Below, the sound as the encoder hears it.",
        time_axis=axis,
    )
    return PageClip(
        title=LANGUAGES[clip.language],
        language=clip.language,
        waveform=clip.load(),
        transcript=heard.text,
        reference=clip.text,
        words=[PageWord(word.text, word.start, word.end) for word in cache.words()],
        pictures=[picture],
        credit=f"Voice: {clip.speaker}, {LICENCES[clip.language]}.",
    )


def _page(model: HookedWhisper, material: DemoMaterial, clips: list[PageClip], inside: dict[str, bytes]) -> Page:
    cfg = model.cfg
    cache = material.looked_into[0][1]
    total = sum(p.numel() for p in model.parameters())
    return Page(
        title="Inside Whisper",
        intro=(
            f"One sentence, said in {len(clips)} languages, transcribed by {cfg.model_name} with every activation in "
            "view. Press play, or a word: the line shows where you are in the picture.\n\n"
            "Everything on this page was computed by hooked-whisper in one run of its demo."
        ),
        facts=[
            ("Model", cfg.model_name),
            ("Parameters", f"{total / 1e6:.1f} million"),
            ("Layers", f"{cfg.encoder.n_layers} encoder, {cfg.decoder.n_layers} decoder"),
            ("Width and heads", f"{cfg.d_model}, {cfg.decoder.n_heads} heads"),
            ("Hook points", str(len(model.hook_dict))),
        ],
        clips=clips,
        sections=[
            Section(
                "Hide a word",
                text="The English clip again. Each time the sound of one word, and 0.1 s on each side, was hidden from "
                f"the decoder: in every head of all {cfg.decoder.n_layers} layers the cross-attention pattern was set "
                "to zero there and the rest scaled back to a sum of one, at every step of writing. The encoder still "
                "hears everything.",
                tables=[
                    Table(
                        "What the model writes when it cannot look at a word.",
                        ["Hidden", "Whisper writes"],
                        [[edit.what, edit.text] for edit in material.edits],
                    )
                ],
            ),
            Section(
                "Heads and layers",
                pictures=[
                    Picture(
                        inside["heads"],
                        alt=f"A grid of {cfg.decoder.n_layers} by {cfg.decoder.n_heads} small heat maps, one for each "
                        "cross-attention head. In some of them, mostly in later layers, a dark diagonal follows the "
                        "speech.",
                        caption="Every cross-attention head. The framed ones are the checkpoint's alignment heads.",
                    ),
                    Picture(
                        inside["norms"],
                        alt="Two line charts: the length of the residual stream's vectors after each encoder and each "
                        "decoder layer, with what attention and MLP of that layer write.",
                        caption="Length of the residual stream's vectors after each layer, and of what each part of "
                        "the layer adds to it: medians over the clip's frames and tokens, padding left out; the band "
                        "holds the middle 80 %.",
                    ),
                    Picture(
                        inside["mel"],
                        alt="Log-mel spectrogram of the English clip, the words above it at the times when they are "
                        "said.",
                        caption="The encoder's input, hook_mel.",
                    ),
                ],
            ),
            Section(
                "Transcripts",
                tables=[
                    Table(
                        "The published texts have errors of their own.",
                        ["Language", "Whisper writes", "Published text"],
                        [[LANGUAGES[h.clip.language], h.text, h.clip.text] for h in material.heard],
                        languages=[h.clip.language for h in material.heard],
                    )
                ],
                folded=True,
            ),
            Section(
                "Hook table",
                text="Every activation has a name. Read it in a cache, or edit it in any run, also while the model "
                "writes.",
                tables=[
                    Table(
                        "Names, axes, and the option that switches a hook on.",
                        ["Hook", "Axes", "Switched on by"],
                        [
                            [row.short_name, row.axes, f"set_{row.option}(True)" if row.option else ""]
                            for row in material.hooks
                        ],
                        code=frozenset({0, 1, 2}),
                    )
                ],
                folded=True,
            ),
            Section(
                "Cache",
                text=f"What run_with_cache kept of the English clip, {cache.nbytes / 1e6:.0f} MB. What several hooks "
                "share is held once. What follows from other activations, such as attention patterns, is computed when "
                "it is read.",
                code=cache.summary(),
                folded=True,
            ),
        ],
        footer=(
            "Speech: Asterisk core sounds (downloads.asterisk.org). English and Spanish: Allison Smith, CC BY-SA 3.0. "
            "French: June Wallack, CC BY-SA 3.0. Italian: Carlo Flora, CC BY 3.0. Russian: voice of ivrvoice.ru, "
            "provided by Maxim Topal, CC BY 3.0. The sound is as published, decoded from G.722.\n\n"
            "Model: Whisper, OpenAI, MIT licence. Page and pictures: hooked-whisper, MIT licence."
        ),
    )
