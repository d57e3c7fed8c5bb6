"""`hooked-whisper sensitivity`. Importing it costs nothing: what the command needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from hooked_whisper.command_options import DEFAULT_MODEL, Clauses, Device, Languages, Model
from hooked_whisper.saes.harvest_command import CorpusArgument, choose, open_corpus


def sensitivity(
    corpus: CorpusArgument,
    out: Annotated[Path, typer.Option(help="The file to write, such as sensitivity.safetensors.")],
    hook: Annotated[str, typer.Option(help="The hook that an SAE is to be trained on.")] = "encoder.hook_out",
    model: Model = DEFAULT_MODEL,
    language: Languages = None,
    where: Clauses = None,
    held_out: Annotated[
        float | None, typer.Option(help="Without the part that `evaluate` is given by the same, such as 0.1.")
    ] = None,
    by: Annotated[str, typer.Option(help="The column whose values --held-out keeps together.")] = "id",
    split_seed: Annotated[int, typer.Option(help="Of --held-out.")] = 0,
    every: Annotated[int, typer.Option(help="Take only every n-th clip.", min=1)] = 1,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out files that cannot be read.")] = False,
    draws: Annotated[int, typer.Option(help="How often tokens are drawn for each text.", min=1)] = 1,
    batch_size: Annotated[int, typer.Option(help="Clips at a time.", min=1)] = 4,
    seed: Annotated[int, typer.Option(help="Of the tokens that are drawn.")] = 0,
    device: Device = None,
) -> None:
    """Measure how much predictions depend on each direction at a hook; `train --sensitivity` counts errors by it."""
    from hooked_whisper import HookedWhisper
    from hooked_whisper.errors import ConfigError
    from hooked_whisper.saes import measure_sensitivity

    if out.is_dir():  # told before the work, not after it
        raise ConfigError(f"--out {out} is a folder: expected a file, such as {out / 'sensitivity.safetensors'}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    clips = choose(open_corpus(corpus, "skip" if skip_broken else "raise"), language or [], where or [])
    if held_out is not None:
        clips = clips.split(held_out, seed=split_seed, by=by)[0]
    if every > 1:
        clips = clips.where(id=[item.id for item in clips][::every])
    whisper = HookedWhisper.from_pretrained(model, device=device)
    found = measure_sensitivity(
        whisper, clips, hook=hook, batch_size=batch_size, draws=draws, seed=seed, progress=sys.stderr.isatty()
    )
    found.save(out)
    typer.echo(f"{found}, in {out}")
    if unused := len(list(clips)) - found.n_clips:
        total = unused + found.n_clips
        typer.echo(f"left out: {unused:,} of {total:,} clips, which are longer than a window or cannot be read")
    typer.echo(f"Next: hooked-whisper train STORE --hook {hook} --sensitivity {out} --out runs/by_predictions")
