"""The explorer's page: a clip from a file or the microphone, its features over time, and one of them to push.

    hooked-whisper explore

Gradio, which the extra `explorer` brings, makes a page of it that this machine alone can open: it listens on 127.0.0.1,
nothing is shared, and Gradio's analytics are off. What the page shows is worked out in `explorer`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hooked_whisper.analysis.command_inputs import DEFAULT_SAE, SaeName
from hooked_whisper.command_options import Device, DType, HookOfSae, ModelOfSae
from hooked_whisper.errors import AnalysisError, HookedWhisperError, MissingExtraError

if TYPE_CHECKING:
    from hooked_whisper.analysis.explorer import Explorer, Heard

HOST = "127.0.0.1"
PORT = 7860
DETECTED = "detected"
SHOWN = 20  # latents in the table
DRAWN = 8  # of them over the spectrogram
MODES = ("add", "scale", "clamp", "zero", "ablate")
_OFF = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
_FIRES = ["latent", "AUC", "share of frames", "mean", "maximum", "peak at, s"]
_TEXTS = ["version", "latent", "dose", "characters changed", "transcript"]


def explore(
    sae: SaeName = DEFAULT_SAE,
    clip: Annotated[Path | None, typer.Option(help="A file that is there when the page opens.")] = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1.", min=1, max=65_535)] = PORT,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open it in the browser.")] = True,
    model: ModelOfSae = None,
    hook: HookOfSae = None,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """Open a page on this machine: speak, see which features fire when, push one, read the new transcript."""
    gradio = import_gradio()
    from hooked_whisper.analysis.command_inputs import open_sae
    from hooked_whisper.analysis.explorer import Explorer

    if clip is not None and not clip.is_file():
        raise AnalysisError(f"There is no file {clip}.")
    whisper, coder = open_sae(sae, hook, model, device, dtype)
    page = build(gradio, Explorer(whisper, coder, hook=hook), clip)
    typer.echo(f"http://{HOST}:{port}, until Ctrl+C; nothing leaves this machine.")
    serve(page, port=port, browser=browser)


def import_gradio() -> Any:
    """Gradio, its analytics switched off.

    Raises:
        MissingExtraError: it is not installed.
    """
    os.environ.update(_OFF)  # before it is imported
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise MissingExtraError(
            "The explorer needs gradio, which cannot be imported: pip install 'hooked-whisper[explorer]'."
        ) from error


def serve(page: Any, *, port: int, browser: bool = False, block: bool = True) -> Any:
    """Starts the page on this machine alone; returns what Gradio does."""
    return page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        ssr_mode=False,
        inbrowser=browser,
        quiet=True,
        show_error=True,
        prevent_thread_lock=not block,
    )


# What the buttons do


def listen(explorer: Explorer, audio: str | None, language: str) -> tuple[Heard, str]:
    """The clip, and what there is to say of it.

    Raises:
        AnalysisError: no clip. AudioError: one that cannot be read, or is over 30 s.
    """
    if not audio:
        raise AnalysisError("There is no clip yet: record one, or drop a file.")
    heard = explorer.hear(audio, language=None if language in ("", DETECTED) else language)
    return heard, f"{heard.seconds:.1f} s, {heard.language}: {heard.text}"


def fires_table(heard: Heard, start: float, end: float) -> tuple[list[list[Any]], Any]:
    """Rows of the table of latents, and the picture of the first of them; `end` at most `start`: the whole clip."""
    span = (start, end) if end > start else None
    rows = heard.fires(SHOWN, span)
    table = [
        [row["latent"], _round(row.get("auc")), _round(row.get("share", row.get("here"))), _round(row.get("mean")),
         _round(row.get("maximum")), _round(row["peak at"], 2)]
        for row in rows
    ]  # fmt: skip
    return table, heard.plot([row["latent"] for row in rows[:DRAWN]], span)


def latent_view(heard: Heard, latent: float | None) -> tuple[Any, float, str]:
    """The picture of one latent, its typical magnitude, and whether it fires.

    Raises:
        AnalysisError: a latent that is not there.
    """
    number = whole(latent)
    magnitude, fires = heard.magnitude(number)
    said = (
        f"fires on {(heard.activation(number) > 0).mean():.1%} of the clip, {magnitude:.3g} where it does"
        if fires
        else f"is silent on this clip; {magnitude:.3g} is what those that fire typically have: a guess"
    )
    return heard.plot([number]), round(magnitude, 3), f"Latent {number} {said}."


def steered_table(
    heard: Heard, latent: float | None, mode: str, dose: float, magnitude: float | None, start: float, end: float,
    error_term: str,
) -> list[list[Any]]:  # fmt: skip
    """Transcripts: the model's, the SAE's alone, the steered one, and one with a random latent.

    Raises:
        AnalysisError: a latent or mode that is not there, or a span past the clip's end.
    """
    span = (start, end) if end > start else None
    found = heard.steered(
        mode,  # type: ignore[arg-type]
        whole(latent),
        dose=dose,
        magnitude=magnitude or None,
        span=span,
        error_term=error_term,  # type: ignore[arg-type]
    )
    names = {"sae": "SAE alone", "random-0": "random latent"}
    return [
        [names.get(one.version, one.version), " ".join(map(str, one.latents)), one.dose if one.latents else "",
         "" if one.version == "unhooked" else f"{one.changed:.1%}", one.text]
        for one in found
    ]  # fmt: skip


def whole(latent: float | None) -> int:
    """The number of a latent, from a field that holds any number or none.

    Raises:
        AnalysisError: nothing, or no whole number.
    """
    if latent is None or latent != int(latent):
        raise AnalysisError(f"Which latent? Expected a whole number from 0, got {latent}.")
    return int(latent)


def _round(value: float | None, digits: int = 3) -> float | str:
    return "" if value is None else round(float(value), digits)


# The page


def build(gradio: Any, explorer: Explorer, clip: Path | None = None) -> Any:
    """The page, not yet served."""
    gr = gradio

    def tell(function: Any, *arguments: Any) -> Any:
        """What the library refuses is shown on the page."""
        try:
            return function(*arguments)
        except HookedWhisperError as error:
            raise gr.Error(str(error), print_exception=False) from None

    def need(heard: Heard | None) -> Heard:
        if heard is None:
            raise gr.Error("Listen to a clip first.", print_exception=False)
        return heard

    def on_listen(audio: str | None, language: str) -> tuple[Any, ...]:
        heard, said = tell(listen, explorer, audio, language)
        table, picture = tell(fires_table, heard, 0.0, 0.0)
        first = table[0][0]
        _, magnitude, about = tell(latent_view, heard, first)
        limits = gr.update(maximum=round(heard.seconds, 2), value=0)
        return heard, said, table, picture, limits, limits, first, magnitude, about

    def on_span(heard: Heard | None, start: float, end: float) -> Any:
        return tell(fires_table, need(heard), start, end)

    def on_latent(heard: Heard | None, latent: float | None) -> Any:
        return tell(latent_view, need(heard), latent)

    def on_steer(heard: Heard | None, *asked: Any) -> Any:
        return tell(steered_table, need(heard), *asked)

    languages = [DETECTED]
    tokenizer = explorer.model.tokenizer
    if tokenizer is not None and tokenizer.is_multilingual:
        languages += sorted(tokenizer.languages)
    with gr.Blocks(title="hooked-whisper explorer", analytics_enabled=False) as page:
        gr.Markdown(
            f"# Which features fire when?\n{explorer.n_latents:,} latents at `{explorer.hook}` of "
            f"{explorer.model.cfg.model_name}. To look and to listen: a finding takes many clips and controls."
        )
        state = gr.State(None)
        with gr.Row():
            audio = gr.Audio(
                sources=["microphone", "upload"], type="filepath", label=f"A clip of at most {explorer.seconds:g} s",
                value=None if clip is None else str(clip),
            )  # fmt: skip
            with gr.Column():
                language = gr.Dropdown(languages, value=DETECTED, label="Language")
                go = gr.Button("Listen", variant="primary")
                said = gr.Textbox(label="Transcript", interactive=False)
        with gr.Row():
            start = gr.Slider(0, 30, value=0, step=0.02, label="From, s")
            end = gr.Slider(0, 30, value=0, step=0.02, label="To, s (0: the whole clip)")
            show = gr.Button("What sets these seconds apart?")
        picture = gr.Plot(label="When they fire, each scaled to its own maximum")
        table = gr.Dataframe(headers=_FIRES, label="Latents", interactive=False)
        gr.Markdown("## Push one")
        with gr.Row():
            latent = gr.Number(value=None, precision=0, label=f"Latent, 0 to {explorer.n_latents - 1}")
            magnitude = gr.Number(value=None, label="Its typical magnitude")
            look = gr.Button("Show it alone")
        about = gr.Markdown()
        with gr.Row():
            mode = gr.Radio(MODES, value="add", label="What is done to it")
            dose = gr.Slider(-10, 20, value=3, step=0.5, label="Dose")
            error_term = gr.Radio(["kept", "dropped"], value="kept", label="What the SAE misses is")
            push = gr.Button("Transcribe", variant="primary")
        texts = gr.Dataframe(
            headers=_TEXTS, label="Transcripts; it is pushed in the seconds chosen above, or everywhere", wrap=True,
            interactive=False,
        )  # fmt: skip

        shown = [state, said, table, picture, start, end, latent, magnitude, about]
        go.click(on_listen, [audio, language], shown, api_name="listen")
        show.click(on_span, [state, start, end], [table, picture], api_name="span")
        look.click(on_latent, [state, latent], [picture, magnitude, about], api_name="latent")
        asked = [state, latent, mode, dose, magnitude, start, end, error_term]
        push.click(on_steer, asked, texts, api_name="steer")
        dose.release(on_steer, asked, texts, show_progress="minimal", api_visibility="private")
    return page
