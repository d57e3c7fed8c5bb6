"""`hooked-whisper evaluate`. Importing it costs nothing: what the command needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hooked_whisper.command_options import Clauses, Device, DType, HookOfSae, Languages, ModelOfSae

if TYPE_CHECKING:
    from hooked_whisper.saes.corpus import Corpus
    from hooked_whisper.saes.report import SaeReport

SHIPPED = "shipped"


def evaluate(
    sae: Annotated[str, typer.Argument(help="A run's folder, an SAE's folder, a hub repository or a shipped SAE.")],
    corpus: Annotated[
        str,
        typer.Option(
            help="Manifest (.jsonl, .csv, .parquet) or folder of audio; 'shipped' is the repository's speech."
        ),
    ],
    model: ModelOfSae = None,
    hook: HookOfSae = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the report; the run's own when left out.")] = None,
    language: Languages = None,
    where: Clauses = None,
    held_out: Annotated[
        float | None, typer.Option(help="Only the part that `split` holds out, such as 0.1.", min=0.0, max=1.0)
    ] = None,
    by: Annotated[str, typer.Option(help="The column whose values --held-out keeps together.")] = "id",
    split_seed: Annotated[int, typer.Option(help="Of --held-out.")] = 0,
    clips_per_language: Annotated[int | None, typer.Option(help="At most so many, drawn at random.", min=1)] = None,
    splice: Annotated[bool, typer.Option(help="Measure what the SAE does in the model.")] = True,
    transcribe: Annotated[bool, typer.Option(help="Transcribe with the SAE spliced in; the slowest part.")] = True,
    reference: Annotated[bool, typer.Option(help="Also predictions of the reference texts.")] = False,
    baselines: Annotated[bool, typer.Option(help="Against neurons and principal components.")] = True,
    padding: Annotated[str, typer.Option(help="Padding frames, when splicing: keep or replace.")] = "keep",
    batch_size: Annotated[int, typer.Option(help="Clips that go through the model together.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Of clips drawn and resampled.")] = 0,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """Evaluate an SAE on speech: reconstruction, latents, predictions and transcripts with it spliced in."""
    from hooked_whisper import HookedWhisper
    from hooked_whisper.errors import ConfigError
    from hooked_whisper.saes import evaluate_sae, load_sae

    folder = out or (Path(sae) if Path(sae).is_dir() else None)
    if folder is None:
        raise ConfigError(f"{sae!r} is no folder to write the report into: pass --out.")
    loaded = load_sae(sae)
    name = model or loaded.cfg.metadata.model_name
    if name is None:
        raise ConfigError("The SAE's metadata names no model: pass --model, such as --model openai/whisper-base.")
    clips = _part(_open(corpus), where or [], held_out, by, split_seed)
    whisper = HookedWhisper.from_pretrained(name, device=device, dtype=dtype)
    report = evaluate_sae(
        whisper,
        loaded.to(whisper.device),
        clips,
        hook=hook,
        languages=language or None,
        clips_per_language=clips_per_language,
        splice=splice,
        padding=padding,  # type: ignore[arg-type]
        reference=reference,
        transcribe=transcribe,
        baselines=("neurons", "pca") if baselines else (),
        batch_size=batch_size,
        seed=seed,
        progress=sys.stderr.isatty(),
    )
    written = report.save(folder)
    typer.echo("\n".join(_verdicts(report)))
    typer.echo(f"\nWritten: {', '.join(str(path) for path in written)}")
    typer.echo(f"Next: hooked-whisper publish {sae} USER/NAME")


def _open(corpus: str) -> Corpus:
    from hooked_whisper.saes import Corpus

    if corpus == SHIPPED:
        return Corpus.from_clips()
    return Corpus.from_folder(corpus) if Path(corpus).is_dir() else Corpus.from_manifest(corpus)


def _part(corpus: Corpus, where: list[str], held_out: float | None, by: str, seed: int) -> Corpus:
    from hooked_whisper.errors import ConfigError

    columns: dict[str, str] = {}
    for clause in where:
        column, found, value = clause.partition("=")
        if not found:
            raise ConfigError(f"--where {clause!r} names no value: expected column=value, such as split=held-out.")
        columns[column] = value
    if columns:
        tests = {column: (lambda value, wanted=wanted: str(value) == wanted) for column, wanted in columns.items()}
        corpus = corpus.where(**tests)
    return corpus if held_out is None else corpus.split(held_out, seed=seed, by=by)[1]


def _verdicts(report: SaeReport) -> list[str]:
    """One line for each gate."""
    lines = []
    for gate in report.gates():
        verdict = {True: "pass", False: "FAIL", None: "not measured"}[gate.passes]
        unsure = " (within the noise)" if gate.certain is False else ""
        of = f", {gate.language}" if gate.language else ""
        lines.append(f"{verdict:>12}  {gate.name}{of}: {gate.figure} ({gate.bound}){unsure}")
    return lines
