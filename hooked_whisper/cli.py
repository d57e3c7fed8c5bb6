"""The command line: `hooked-whisper --help`.

Only what the help needs is imported here; torch and the model come with the command that needs them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from hooked_whisper.analysis.dashboard_command import dashboard
from hooked_whisper.analysis.explorer_app import explore
from hooked_whisper.analysis.features_command import features
from hooked_whisper.analysis.patch_command import attribute, patch
from hooked_whisper.analysis.steer_command import steer
from hooked_whisper.command_options import DEFAULT_MODEL, Device, DType, Model
from hooked_whisper.errors import HookedWhisperError
from hooked_whisper.saes.evaluate_command import evaluate
from hooked_whisper.saes.harvest_command import harvest, prompts
from hooked_whisper.saes.publish_command import publish
from hooked_whisper.saes.sensitivity_command import sensitivity
from hooked_whisper.saes.train_command import train

app = typer.Typer(
    help="See inside OpenAI's Whisper: transcribe, list every hook point, look at what happens in between.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command(short_help="See what all this is about, in a minute.")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the page.")] = Path("demo_output"),
    model: Model = DEFAULT_MODEL,
    device: Device = None,
) -> None:
    """Transcribe speech in five languages, look inside, and write pictures and an HTML page."""
    from hooked_whisper.analysis.demo import run_demo

    run_demo(out, model=model, device=device)


@app.command()
def transcribe(
    audio: Annotated[list[Path], typer.Argument(help="Audio or video files of any length and format.")],
    model: Model = DEFAULT_MODEL,
    language: Annotated[str | None, typer.Option(help="Name or code, such as 'fr'; detected when left out.")] = None,
    task: Annotated[str, typer.Option(help="transcribe, or translate to English.")] = "transcribe",
    words: Annotated[bool, typer.Option("--words", help="Each word with its start and end in seconds.")] = False,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Each segment with its start and end.")] = False,
    beams: Annotated[int, typer.Option(help="Beams to search with; 1 is greedy.", min=1)] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="All there is, as JSON, one object a file.")] = False,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """Transcribe files."""
    from hooked_whisper import HookedWhisper, transcription

    loaded = HookedWhisper.from_pretrained(model, device=device, dtype=dtype)
    for path in audio:
        found = transcription.transcribe(
            loaded, path, language=language, task=task, timestamps=timestamps, word_timestamps=words, num_beams=beams
        )
        assert isinstance(found, transcription.Transcript)
        if as_json:
            typer.echo(json.dumps({"file": str(path), **found.to_dict()}, ensure_ascii=False))
            continue
        if len(audio) > 1:
            typer.echo(f"{path}:")
        if words or timestamps:
            for part in found.words or [] if words else found.segments:
                typer.echo(f"{part.start:8.2f} {part.end:8.2f}  {part.text.strip()}")
        else:
            typer.echo(found.text)


@app.command(short_help="Print every hook of a model.")
def hooks(
    model: Model = DEFAULT_MODEL,
    pattern: Annotated[str, typer.Option(help="Only names that match, such as 'decoder.*.cross_attn.*'.")] = "*",
    names: Annotated[bool, typer.Option("--names", help="One full name a line, for every layer.")] = False,
) -> None:
    """Print the hook table of a model: every activation's name and the axes it has."""
    from hooked_whisper import HookedWhisper
    from hooked_whisper.hook_table import format_hook_table, hook_table

    loaded = HookedWhisper.from_pretrained(model, device="cpu")
    found = list(loaded.hook_dict) if pattern == "*" else loaded.resolve_names(pattern)
    typer.echo("\n".join(found) if names else format_hook_table(hook_table(loaded, found)))


app.command(short_help="Fetch real speech in five languages.")(prompts)
app.command(short_help="Store activations of a corpus.")(harvest)
app.command(short_help="Measure what predictions depend on, to train by it.")(sensitivity)
app.command(short_help="Train a sparse autoencoder.")(train)
app.command(short_help="Evaluate an SAE on speech.")(evaluate)
app.command(short_help="Publish an SAE on the hub.")(publish)
app.command(short_help="Pages to look at and listen to features.")(dashboard)
app.command(short_help="Which latents fire where, and what they stand for.")(features)
app.command(short_help="Transcribe while a latent is pushed.")(steer)
app.command(short_help="Take parts of one run into another: exact.")(patch)
app.command(short_help="Estimate what patching would do, all parts at once.")(attribute)
app.command(short_help="Open a page: speak, see features, push one.")(explore)


@app.command()
def version() -> None:
    """Print the version."""
    from hooked_whisper import __version__

    typer.echo(__version__)


def main() -> None:
    """Entry point: what the library refuses is shown as one message, without a traceback."""
    try:
        app()
    except HookedWhisperError as error:
        sys.exit(f"hooked-whisper: {error}")


if __name__ == "__main__":
    main()
