"""`hooked-whisper dashboard`. Importing it costs nothing: what the command needs is imported when it runs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hooked_whisper.analysis.command_inputs import DEFAULT_SAE, SaeName, check_latents, open_clips, open_sae
from hooked_whisper.command_options import Clauses, Device, DType, HookOfSae, Languages, ModelOfSae
from hooked_whisper.errors import ConfigError

if TYPE_CHECKING:
    from hooked_whisper.analysis.dashboard_steering import SteeringView


def dashboard(
    clips: Annotated[
        list[str] | None,
        typer.Argument(
            help="Audio files, a folder, a manifest, or 'shipped', which is meant where nothing is given.",
            metavar="CLIPS...",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pages; a dashboard that is there is replaced.")] = Path(
        "dashboard"
    ),
    sae: SaeName = DEFAULT_SAE,
    feature: Annotated[
        list[int] | None, typer.Option(help="Only this latent; repeatable. All if left out.", show_default=False)
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="Score latents against labels, and show them: a file (TextGrid, CTM, CSV, JSON), a folder of "
            "TextGrids, 'words', 'sound', 'position', 'classes' (of a tier of phones), or a column of the clips, such "
            "as language; repeatable."
        ),
    ] = None,
    by: Annotated[str, typer.Option(help="With --labels: what the halves are made of: clip, speaker, key.")] = "clip",
    effects: Annotated[
        bool, typer.Option("--effects", help="Measure what taking a latent away does to the transcript: slow.")
    ] = False,
    steering: Annotated[
        list[str] | None,
        typer.Option(
            help="A steering result for the page of a latent, as `steer --out FILE.json` or SteeringResult.to_json() "
            "gives it; repeatable.",
            metavar="LATENT=FILE",
        ),
    ] = None,
    segments: Annotated[int, typer.Option(help="Segments of a page, each of another clip.", min=1)] = 8,
    single: Annotated[
        bool, typer.Option("--single", help="With one --feature: one HTML file, everything inside, instead.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Of the index.")] = None,
    language: Languages = None,
    where: Clauses = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep activations in this folder, and words beside it, or take them from there.")
    ] = None,
    model: ModelOfSae = None,
    hook: HookOfSae = None,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.", min=1)] = 8,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """Pages to look at and listen to the features of an SAE, offline."""
    experiments = [read_steering(one) for one in steering or []]
    if single and len(feature or []) != 1:
        raise ConfigError("--single writes the page of one latent: name it with --feature.")
    whisper, coder = open_sae(sae, hook, model, device, dtype)
    check_latents([*(feature or []), *(latent for latent, _ in experiments)], coder.cfg.d_sae)
    if not single:
        from hooked_whisper.analysis.dashboard_folder import DashboardFolder

        DashboardFolder(out)  # before anything is computed: it may refuse
    from hooked_whisper.analysis.dashboard import feature_page, make_dashboard
    from hooked_whisper.analysis.feature_effects import token_effects
    from hooked_whisper.analysis.feature_scores import score_features
    from hooked_whisper.analysis.features_command import read_codes, read_sources

    corpus = open_clips(clips or ["shipped"], language or [], where or [])
    with ExitStack() as stack:
        folder = store or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "acts"
        codes = read_codes(whisper, coder, hook, corpus, folder, packing="windows", batch_size=batch_size)
    found = read_sources(whisper, corpus, codes, labels or [], batch_size, store)
    bars = sys.stderr.isatty()
    scores = None if found.table is None else score_features(codes, found.table, by=by, progress=bars)
    chosen = list(dict.fromkeys(feature)) if feature else None
    measured = None
    if effects:
        latents = list(range(codes.n_latents)) if chosen is None else chosen
        measured = token_effects(whisper, coder, corpus, codes, latents, progress=bars)
    steered: dict[int, list[SteeringView]] = {}
    for latent, view in experiments:
        steered.setdefault(latent, []).append(view)
    shared = {
        "codes": codes, "labels": found.labels, "scores": scores, "effects": measured, "steering": steered,
        "n_segments": segments, "title": title, "progress": bars,
    }  # fmt: skip
    if single:
        path = _file(out, chosen or [])
        path.parent.mkdir(parents=True, exist_ok=True)
        html = feature_page(whisper, coder, corpus, (chosen or [0])[0], **shared)
        path.write_text(html, encoding="utf-8")
        typer.echo(f"Written: {path}, {path.stat().st_size / 1e6:.1f} MB; open it in a browser.")
        return
    made = make_dashboard(whisper, coder, corpus, out, features=chosen, **shared)
    typer.echo(str(made))
    typer.echo(f"Open {made.index} in a browser.")
    typer.echo(f"Next: hooked-whisper publish RUN USER/NAME --dashboard {out}")


def _file(out: Path, latents: Sequence[int]) -> Path:
    """The file of a single page: `out` if it is one, else one in that folder."""
    return out if out.suffix == ".html" else out / f"latent-{latents[0]}.html"


def read_steering(text: str) -> tuple[int, SteeringView]:
    """A latent and its result, from LATENT=FILE.

    Raises:
        ConfigError: another form. AnalysisError: a file that holds no steering result.
    """
    from hooked_whisper.analysis.dashboard_steering import SteeringView

    latent, found, path = text.partition("=")
    if not found or not latent.strip().isdecimal():
        raise ConfigError(f"--steering {text!r}: expected LATENT=FILE, such as 1234=steer.json.")
    return int(latent), SteeringView.read(path)
