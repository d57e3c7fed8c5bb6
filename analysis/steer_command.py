"""`hooked-whisper steer`. Importing it costs nothing: what the command needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hooked_whisper.analysis.command_inputs import (
    DEFAULT_SAE,
    SaeName,
    check_latents,
    check_table,
    open_clips,
    open_sae,
    read_span,
    text_table,
    write_table,
)
from hooked_whisper.command_options import Clauses, Device, DType, HookOfSae, Languages, ModelOfSae
from hooked_whisper.errors import AnalysisError, ConfigError

if TYPE_CHECKING:
    from hooked_whisper.analysis.steered_transcripts import SteeredText
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.corpus import Corpus

DOSES = (1.0, 3.0)


def steer(
    clips: Annotated[
        list[str],
        typer.Argument(help="Audio files of at most 30 s, a folder, a manifest, or 'shipped'.", metavar="CLIPS..."),
    ],
    latent: Annotated[int, typer.Option(help="The latent to steer.")],
    mode: Annotated[
        str,
        typer.Option(
            help="add (dose times its typical magnitude, fire it or not), scale (times the dose), clamp (held at dose "
            "times the magnitude), zero, ablate or swap (the dose says how much of it)."
        ),
    ] = "add",
    to: Annotated[int | None, typer.Option(help="With --mode swap: the latent that takes its place.")] = None,
    dose: Annotated[list[float] | None, typer.Option(help="How much; repeatable. 1 and 3 if left out.")] = None,
    span: Annotated[
        str | None, typer.Option(help="Only at these seconds; everywhere if left out.", metavar="START:END")
    ] = None,
    word: Annotated[str | None, typer.Option(help="Only where the model hears this word.")] = None,
    magnitude: Annotated[
        float | None,
        typer.Option(help="What to call typical, in units of activation: of a latent that is silent here."),
    ] = None,
    activity: Annotated[
        list[str] | None,
        typer.Option(help="More clips to measure typical magnitudes on, such as 'shipped'; repeatable."),
    ] = None,
    error_term: Annotated[
        str, typer.Option(help="kept: the model's own activation, moved; dropped: the SAE stands in for it.")
    ] = "kept",
    n_random: Annotated[int, typer.Option("--random", help="Random latents at the same dose.", min=0)] = 1,
    seed: Annotated[int, typer.Option(help="Of the random latents.")] = 0,
    out: Annotated[Path | None, typer.Option(help="All transcripts into a file, .csv or .json.")] = None,
    sae: SaeName = DEFAULT_SAE,
    language: Languages = None,
    where: Clauses = None,
    model: ModelOfSae = None,
    hook: HookOfSae = None,
    batch_size: Annotated[int, typer.Option(help="Clips at a time.", min=1)] = 8,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """Transcribe clips while a latent is pushed, beside the model alone, the SAE alone and random latents."""
    from hooked_whisper.analysis.activity import Activity
    from hooked_whisper.analysis.steered_transcripts import Steer, SteeredClips, dose_transcripts

    check_table(out)
    if error_term not in ("kept", "dropped"):
        raise ConfigError(f"--error-term {error_term!r}: expected 'kept' or 'dropped'.")
    if span is not None and word is not None:
        raise ConfigError("--span and --word both say where: pass one.")
    seconds = None if span is None else read_span(span)
    how = Steer(mode, latent, to, magnitude)  # type: ignore[arg-type]
    corpus = open_clips(clips, language or [], where or [])
    whisper, coder = open_sae(sae, hook, model, device, dtype)
    check_latents([latent] if to is None else [latent, to], coder.cfg.d_sae)
    items, sounds = list(corpus), [item.load() for item in corpus]
    heard = SteeredClips(whisper, coder, sounds, [item.language for item in items], hook=hook, batch_size=batch_size)
    spans = [[seconds]] * len(items) if seconds is not None else None
    if word is not None:
        spans = spans_of_word(whisper, corpus, word, batch_size)
    known = heard.activity
    if activity:
        more = [item.load() for item in open_clips(activity)]
        known = Activity.of_clips(whisper, coder, [*sounds, *more], batch_size=batch_size)
    how = Steer(mode, latent, to, magnitude, spans)  # type: ignore[arg-type]
    texts = dose_transcripts(
        heard,
        how,
        dose or DOSES,
        activity=known,
        error_term=error_term,  # type: ignore[arg-type]
        n_random=n_random,
        seed=seed,
    )
    names = [item.id for item in items]
    for clip, name in enumerate(names):
        typer.echo(f"{name} ({heard.languages[clip] or 'en'})")
        typer.echo(text_table([_row(one) for one in texts if one.clip == clip], {"changed": ".1%"}))
    if len(names) > 1:
        typer.echo(f"All {len(names)} clips")
        typer.echo(text_table(summary(texts), {"changed": ".1%"}))
    if n_random == 0:
        typer.echo("Without random latents (--random) nothing tells this latent from any other.")
    if out is not None:
        rows = [{**asdict(one), "clip": names[one.clip], "latents": " ".join(map(str, one.latents))} for one in texts]
        write_table(rows, out)
        typer.echo(f"Written: {len(rows):,} transcripts in {out}")
        if out.suffix == ".json":
            typer.echo(f"To look at: hooked-whisper dashboard CLIPS --feature {latent} --steering {latent}={out}")
    typer.echo(
        "Next: many clips, a target, every control and intervals: steering_experiment (docs/analysis-steering.md)"
    )


def spans_of_word(model: HookedWhisper, corpus: Corpus, word: str, batch_size: int) -> list[list[tuple[float, float]]]:
    """When the model hears a word, clip by clip.

    Raises:
        AnalysisError: in no clip.
    """
    from hooked_whisper.analysis.labels import plain_word
    from hooked_whisper.analysis.word_labels import word_labels

    labels = word_labels(model, corpus, batch_size=batch_size)
    spans = [
        [(one.start, one.end) for one in labels.tiers[item.id]["word"] if one.value == plain_word(word)]
        for item in corpus
    ]
    if not any(spans):
        heard = " ".join(one.value for one in next(iter(labels.tiers.values()))["word"])
        raise AnalysisError(f"The model hears {word!r} in none of {len(spans)} clips; in the first one: {heard}.")
    return spans


def _row(one: SteeredText) -> dict[str, Any]:
    return {
        "version": _called(one.version),
        "latent": " > ".join(map(str, one.latents)),
        "dose": one.dose if one.latents else None,
        "changed": None if one.version == "unhooked" else one.changed,
        "transcript": one.text,
    }


def _called(version: str) -> str:
    return "SAE alone" if version == "sae" else version


def summary(texts: Sequence[SteeredText]) -> list[dict[str, Any]]:
    """For each version and dose how many transcripts changed, and the mean share of characters."""
    found: dict[tuple[str, float], list[SteeredText]] = {}
    for one in texts:
        if one.version != "unhooked":
            found.setdefault((one.version, one.dose), []).append(one)
    return [
        {
            "version": _called(version),
            "dose": dose if version != "sae" else None,
            "clips changed": sum(one.changed > 0 for one in group),
            "changed": sum(one.changed for one in group) / len(group),
        }
        for (version, dose), group in found.items()
    ]
