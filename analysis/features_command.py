"""`hooked-whisper features`. Importing it costs nothing: what the command needs is imported when it runs."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
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
from hooked_whisper.analysis.feature_rows import Rows, of_all, of_clip, of_labels, of_latents, of_search
from hooked_whisper.command_options import Clauses, Device, DType, HookOfSae, Languages, ModelOfSae
from hooked_whisper.errors import AnalysisError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from hooked_whisper.analysis.codes import FeatureCodes
    from hooked_whisper.analysis.frame_labels import FrameLabels
    from hooked_whisper.analysis.labels import Labels
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.corpus import Corpus

WORDS, SOUND, POSITION, CLASSES = "words", "sound", "position", "classes"
DERIVED = (WORDS, SOUND, POSITION, CLASSES)
_FORMATS = {
    "here": ".1%", "elsewhere": ".2%", "density": ".2%", "share": ".1%", "auc": ".3f", "peak at": ".2f",
    "start": ".2f", "end": ".2f", "F1": ".3f", "F1 chosen on": ".3f",
}  # fmt: skip


def features(
    clips: Annotated[
        list[str] | None,
        typer.Argument(help="Audio files, a folder, a manifest, or 'shipped'.", metavar="CLIPS...", show_default=False),
    ] = None,
    sae: SaeName = DEFAULT_SAE,
    clip: Annotated[str | None, typer.Option(help="Search: latents that fire on this clip.", metavar="ID")] = None,
    span: Annotated[
        str | None, typer.Option(help="Search: latents that fire on these seconds of the clip.", metavar="START:END")
    ] = None,
    word: Annotated[str | None, typer.Option(help="Search: latents that fire where the model hears this word.")] = None,
    label: Annotated[
        str | None, typer.Option(help="Search: latents that fire on this label of --labels.", metavar="KIND=VALUE")
    ] = None,
    latent: Annotated[
        list[int] | None, typer.Option(help="What this latent does, and where most; repeatable.", show_default=False)
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="The best latent of each label: a file (TextGrid, CTM, CSV, JSON), a folder of TextGrids, 'words', "
            "'sound', 'position', 'classes' (of a tier of phones), or a column of the clips; repeatable."
        ),
    ] = None,
    against: Annotated[list[str] | None, typer.Option(help="More clips, to tell the others from; repeatable.")] = None,
    n: Annotated[int, typer.Option("-n", help="Rows to print.", min=1)] = 10,
    out: Annotated[Path | None, typer.Option(help="All rows into a file, .csv or .json.")] = None,
    wav: Annotated[Path | None, typer.Option(help="With --latent: a folder for its top segments as sound.")] = None,
    by: Annotated[str, typer.Option(help="With --labels: what the halves are made of: clip, speaker, key.")] = "clip",
    min_rows: Annotated[int, typer.Option(help="With --labels: frames a label must have.", min=1)] = 20,
    seed: Annotated[int, typer.Option(help="Of the halves.")] = 0,
    language: Languages = None,
    where: Clauses = None,
    store: Annotated[
        Path | None, typer.Option(help="Keep activations in this folder, and words beside it, or take them from there.")
    ] = None,
    packing: Annotated[str, typer.Option(help="none, or windows: several clips in a 30 s window, faster.")] = "none",
    model: ModelOfSae = None,
    hook: HookOfSae = None,
    batch_size: Annotated[int, typer.Option(help="Windows at a time.", min=1)] = 8,
    device: Device = None,
    dtype: DType = "float32",
) -> None:
    """Which latents of an SAE fire on a clip, a span or a word; what a latent does; the best latent of each label."""
    from hooked_whisper.analysis.labels import plain_word

    check_table(out)
    seconds = None if span is None else read_span(span)
    asked = [what for what in (clip or span, word, label) if what]
    if len(asked) > 1 or (asked and latent):
        raise ConfigError("One question at a time: --clip and --span, --word, --label, or --latent.")
    if label is not None and not labels:
        raise ConfigError(f"--label {label!r} is of no table: pass --labels, such as --labels words.")
    if wav is not None and not latent:
        raise ConfigError("--wav writes the top segments of a latent: pass --latent.")
    with ExitStack() as stack:
        corpus, only = _clips(clips or [], against or [], language or [], where or [], store)
        if seconds is not None and clip is None and only is None:
            raise ConfigError(f"--span {span} of which clip? Pass --clip, or a single audio file.")
        whisper, coder = open_sae(sae, hook, model, device, dtype)
        check_latents(latent or [], coder.cfg.d_sae)
        folder = store or Path(stack.enter_context(tempfile.TemporaryDirectory())) / "acts"
        codes = read_codes(whisper, coder, hook, corpus, folder, packing=packing, batch_size=batch_size)
    typer.echo(
        f"{codes.n_latents:,} latents at {codes.hook}, {codes.n_rows:,} frames of {len(codes.clips):,} "
        f"clip{'s' * (len(codes.clips) > 1)}, {codes.acts.nnz / max(codes.n_rows, 1):.1f} active a frame"
    )
    heard = [*(labels or []), *([WORDS] if word and WORDS not in (labels or []) else [])]
    found = read_sources(whisper, corpus, codes, heard, batch_size, store)
    of = " ".join([*(clips or []), *([] if sae == DEFAULT_SAE else ["--sae", sae])])
    again = f"Next: hooked-whisper features {of} --latent"
    if latent:
        typer.echo(text_table(of_all(codes, latent), _FORMATS))
        rows = of_latents(codes, latent, found.labels, n, wav, corpus)
        _show(rows, out, len(rows))
        typer.echo(f"Next: hooked-whisper steer {of} --latent {latent[0]}")
    elif asked or (only and against and not labels):
        target = label if word is None else f"word={plain_word(word)}"
        rows = of_search(codes, clip or only, seconds, target, found.table, max(n, 100))
        _show(rows, out, n)
        typer.echo(f"{again} {rows[0]['latent']}")
    elif found.table is not None:
        rows = of_labels(codes, found.table, by, min_rows, seed)
        counted = Counter(row["label"].partition("=")[0] for row in rows)
        typer.echo(
            "Chosen on one half of the clips, F1 of the other; labels in both: "
            + ", ".join(f"{count} of {kind}" for kind, count in sorted(counted.items()))
        )
        _show(rows, out, n)
        typer.echo(f"{again} {rows[0]['latent']}")
    elif len(codes.clips) == 1:
        rows = of_clip(codes)
        typer.echo("By what each adds up to over the clip: there is nothing here to tell the clip from.")
        _show(rows, out, n)
        typer.echo(f"Next: hooked-whisper features {of} --span START:END, or --word WORD, or --against MORE_CLIPS")
    else:
        rows = of_all(codes)
        silent = sum(row["clips"] == 0 for row in rows)
        typer.echo(f"{silent:,} latents are silent here ({silent / len(rows):.1%}).")
        _show(rows, out, n)
        typer.echo(f"{again} {rows[0]['latent']}")


def _show(rows: Rows, out: Path | None, n: int) -> None:
    typer.echo(text_table(rows[:n], _FORMATS))
    if out is not None:
        write_table(rows, out)
        typer.echo(f"Written: {len(rows):,} rows in {out}")


# Reading


def _clips(
    clips: Sequence[str], against: Sequence[str], languages: Sequence[str], clauses: Sequence[str], store: Path | None
) -> tuple[Corpus | None, str | None]:
    """The clips, and the id of the one that is asked about, if it is one."""
    if not clips and store is not None:
        if against or languages or clauses:
            raise ConfigError("--against, --language and --where choose among clips: name clips, too.")
        return None, None
    asked = open_clips(clips, languages, clauses)
    only = asked[0].id if len(asked) == 1 else None
    if not against:
        return asked, only
    from hooked_whisper.saes.corpus import Corpus

    there = {item.id for item in asked}
    more = [item for item in open_clips(against) if item.id not in there]
    return Corpus([*asked, *more], name=asked.name), only


def read_codes(
    model: HookedWhisper,
    sae: Any,
    hook: str | None,
    corpus: Corpus | None,
    store: Path,
    *,
    packing: str = "none",
    batch_size: int = 8,
) -> FeatureCodes:
    """What the SAE makes of every frame of the clips; without clips, of every row that the store has.

    Raises:
        AnalysisError: an SAE of the decoder. StoreError, CorpusError: see `harvest`.
    """
    from hooked_whisper.analysis.codes import encode_store
    from hooked_whisper.saes.coding import find_site
    from hooked_whisper.saes.harvesting import harvest
    from hooked_whisper.saes.store import ActivationStore

    site = find_site(model, sae, hook)
    if site.in_decoder or site.positions != "frame":
        raise AnalysisError(f"{site.read} runs over {site.positions}, not frames of 20 ms: pass an SAE of the encoder.")
    if corpus is None:
        opened = ActivationStore.open(store)
        return encode_store(sae, opened, site.read)
    opened = harvest(
        model,
        corpus,
        hooks=site.read,
        out=store,
        packing=packing,  # type: ignore[arg-type]
        batch_size=batch_size,
    )
    return encode_store(sae, opened, site.read)


@dataclass(frozen=True)
class Sources:
    """Labels that were asked for: with times, and as a table with a row for each frame."""

    labels: Labels | None
    table: FrameLabels | None


def read_sources(
    model: HookedWhisper,
    corpus: Corpus | None,
    codes: FeatureCodes,
    names: Sequence[str],
    batch_size: int = 8,
    store: Path | None = None,
) -> Sources:
    """Labels from files, from the model, from the sound and from the clips' columns, as `--labels` names them.

    Words are kept beside `store`, the folder of the activations, if there is one.

    Raises:
        ConfigError: a name that is neither a file nor a source nor a column; a source that needs clips, or a tier that
            is not there. AnalysisError: files that cannot be read, or that are of none of the clips.
    """
    from hooked_whisper.analysis.derived_labels import articulatory_labels, position_labels, utterance_labels
    from hooked_whisper.analysis.frame_labels import column_labels, frame_labels
    from hooked_whisper.analysis.label_files import read_labels
    from hooked_whisper.analysis.labels import Labels
    from hooked_whisper.analysis.sound_labels import sound_labels
    from hooked_whisper.analysis.word_labels import word_labels

    found, columns = Labels({}), []
    for name in names:
        if Path(name).exists():
            found = found.merge(_of_clips(read_labels(name), codes, corpus))
        elif name in (WORDS, SOUND):
            if corpus is None:
                raise ConfigError(f"--labels {name} listens to the clips: name them, too.")
            kept = None if store is None else store.with_name(f"{store.name}.words.jsonl")
            heard = (
                word_labels(model, corpus, batch_size=batch_size, out=kept) if name == WORDS else sound_labels(corpus)
            )
            found = found.merge(heard)
        elif name not in DERIVED and name in codes.columns:
            columns.append(name)
        elif name not in DERIVED:
            known = [*DERIVED, *codes.columns]
            raise ConfigError(
                f"--labels {name!r}: no such file or folder, and no source or column of that name: there are "
                f"{', '.join(known)}.{did_you_mean(name, known)}"
            )
    for name, tier in ((POSITION, "word"), (CLASSES, "phone")):
        if name in names and tier not in found.tier_names:
            raise ConfigError(
                f"--labels {name} is made from a tier {tier!r}, and there is {', '.join(found.tier_names) or 'none'}: "
                + ("add --labels words." if tier == "word" else "add a file that has it.")
            )
    more = [articulatory_labels(found, unknown="skip")] if CLASSES in names else []
    if POSITION in names:
        more += [position_labels(found, "word"), utterance_labels(found)]
    found = found.merge(*more)
    tables = []
    if found.tier_names:
        tables.append(
            frame_labels(found, codes.clip, codes.frame, codes.clips, frames_per_second=codes.frames_per_second)
        )
    if columns:
        tables.append(column_labels({name: codes.column(name) for name in columns}, numbers=5))
    return Sources(found if len(found) else None, tables[0].join(*tables[1:]) if tables else None)


def _of_clips(labels: Labels, codes: FeatureCodes, corpus: Corpus | None) -> Labels:
    """Labels under the ids of the clips; those of other clips are left out, but not all."""
    try:
        return labels.for_clips(codes.clips)
    except AnalysisError:
        fitting = []
        for clip in labels.clips:
            try:
                labels.where(clips=[clip]).for_clips(codes.clips)
            except AnalysisError:
                continue
            fitting.append(clip)
        if not fitting:
            raise
        typer.echo(f"{len(labels) - len(fitting)} labelled clips are none of those asked for; they are left out.")
        return labels.where(clips=fitting).for_clips(codes.clips)
