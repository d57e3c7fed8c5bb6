"""`hooked-whisper harvest` and `prompts`. Importing it costs nothing: what a command needs is imported when it runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from hooked_whisper.command_options import DEFAULT_MODEL, Clauses, Device, DType, Languages, Model

if TYPE_CHECKING:
    from hooked_whisper.saes.corpus import Corpus, OnError
    from hooked_whisper.saes.harvest_plan import Packing, StoreDType, TextFrom, WindowLength

SHIPPED = "shipped"
CorpusArgument = Annotated[
    str,
    typer.Argument(help="Manifest (.jsonl, .csv, .parquet) or folder of audio; or 'shipped': the repository's speech."),
]


def prompts(
    out: Annotated[Path, typer.Argument(help="Folder for the prompts and their manifest.")] = Path("prompts"),
    packages: Annotated[Path | None, typer.Option(help="Folder with the .deb files, for machines without apt.")] = None,
    wav: Annotated[bool, typer.Option("--wav", help="Decode to WAV instead of keeping the packages' G.722.")] = False,
) -> None:
    """Fetch two hours of parallel speech in five languages, with transcripts, from Debian's packages."""
    from hooked_whisper.saes import Corpus, fetch_prompts

    manifest = fetch_prompts(out, packages=packages, wav=wav)
    typer.echo(f"{len(Corpus.from_manifest(manifest)):,} files in {manifest}; licences in {out / 'licences'}")
    typer.echo(f"Next: hooked-whisper harvest {manifest} --hook encoder.hook_out --packing windows --out acts")


def harvest(
    corpus: CorpusArgument,
    hook: Annotated[list[str], typer.Option(help="A hook's name, or a pattern with '*'; may be repeated.")],
    out: Annotated[Path, typer.Option(help="Folder of the store. An unfinished harvest there goes on.")],
    model: Model = DEFAULT_MODEL,
    language: Languages = None,
    where: Clauses = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out files that cannot be read.")] = False,
    packing: Annotated[str, typer.Option(help="none, or windows: several clips in a 30 s window.")] = "none",
    window: Annotated[str, typer.Option(help="full (30 s), or true_length: no padding.")] = "full",
    text: Annotated[str, typer.Option(help="Of decoder hooks: the corpus's text, or the model's own.")] = "corpus",
    prompt: Annotated[bool, typer.Option("--prompt", help="Also rows of the prompt's tokens.")] = False,
    store_dtype: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "float16",
    batch_size: Annotated[int, typer.Option(help="Windows at a time.", min=1)] = 16,
    shard_rows: Annotated[int, typer.Option(help="Rows of a shard, roughly; what a kill can cost.", min=1)] = 65_536,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """Store what hooks hold on a corpus, one row for each frame or token. Shares the work under torchrun."""
    from hooked_whisper import HookedWhisper
    from hooked_whisper.saes import harvest as run

    clips = choose(open_corpus(corpus, "skip" if skip_broken else "raise"), language or [], where or [])
    whisper = HookedWhisper.from_pretrained(model, device=device or _own_device(), dtype=dtype)
    store = run(
        whisper,
        clips,
        hooks=hook,
        out=out,
        dtype=cast("StoreDType", store_dtype),
        batch_size=batch_size,
        packing=cast("Packing", packing),
        window=cast("WindowLength", window),
        text=cast("TextFrom", text),
        prompt=prompt,
        shard_rows=shard_rows,
        progress=sys.stderr.isatty(),
    )
    if os.environ.get("RANK", "0") != "0":  # one of several speaks
        return
    typer.echo(f"{store.n_rows:,} rows of {', '.join(store.hooks)} in {out}")
    typer.echo(str(store.report or "It was complete already."))
    for entry in store.skipped:
        typer.echo(f"left out: {entry['error']}")
    typer.echo(f"Next: hooked-whisper train {out} --hook {store.hooks[-1]} --out runs/{out.name}")


def open_corpus(name: str, on_error: OnError = "raise") -> Corpus:
    """A corpus as the command line names it: a manifest, a folder of audio, or the shipped speech."""
    from hooked_whisper.saes import Corpus

    if name == SHIPPED:
        return Corpus.from_clips(on_error=on_error)
    if Path(name).is_dir():
        return Corpus.from_folder(name, on_error=on_error)
    return Corpus.from_manifest(name, on_error=on_error)


def choose(corpus: Corpus, languages: list[str], clauses: list[str]) -> Corpus:
    """The clips of some languages whose columns have the values of clauses `column=value`.

    Raises:
        ConfigError: a clause without a value.
    """
    from hooked_whisper.errors import ConfigError

    if languages:
        corpus = corpus.where(language=languages)
    for clause in clauses:
        column, found, wanted = clause.partition("=")
        if not found:
            raise ConfigError(f"--where {clause!r} names no value: expected column=value, such as kind=speech.")
        corpus = corpus.where(**{column: lambda value, wanted=wanted: str(value) == wanted})
    return corpus


def _own_device() -> str | None:
    """The GPU of this process among those that torchrun has started on the machine; None if it is alone."""
    import torch

    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{int(rank) % torch.cuda.device_count()}" if rank is not None and torch.cuda.is_available() else None
