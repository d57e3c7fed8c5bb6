"""What the commands of the analysis share: clips, SAE and model by name, spans, tables. Importing it costs nothing."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hooked_whisper.command_options import DEFAULT_MODEL
from hooked_whisper.errors import AnalysisError, ConfigError

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.corpus import Corpus

DEFAULT_SAE = "whisper-base/encoder.hook_out"
_MANIFESTS = (".jsonl", ".csv", ".parquet")
TABLES = (".csv", ".json")

SaeName = Annotated[str, typer.Option("--sae", help="A run, an SAE's folder, a hub repository or a shipped SAE.")]


def open_clips(sources: Sequence[str], languages: Sequence[str] = (), clauses: Sequence[str] = ()) -> Corpus:
    """One corpus of several sources: audio files, folders of them, manifests, or "shipped".

    A file's id is its path as it was given.

    Raises:
        ConfigError: no source, or a clause without a value. CorpusError: nothing there, or two clips of one id.
    """
    from hooked_whisper.saes.corpus import Corpus
    from hooked_whisper.saes.corpus_item import CorpusItem
    from hooked_whisper.saes.harvest_command import SHIPPED, choose, open_corpus

    if not sources:
        raise ConfigError("No clips were given: name audio files, a folder, a manifest, or 'shipped'.")
    parts: list[Corpus] = []
    for source in sources:
        is_one = source != SHIPPED and not Path(source).is_dir() and Path(source).suffix.lower() not in _MANIFESTS
        parts.append(Corpus([CorpusItem(source, Path(source))], name=source) if is_one else open_corpus(source))
    if len(parts) > 1:
        parts = [Corpus([item for part in parts for item in part], name=", ".join(part.name for part in parts))]
    return choose(parts[0], list(languages), list(clauses))


def open_sae(
    sae: str, hook: str | None, model: str | None, device: str | None, dtype: str = "float32"
) -> tuple[HookedWhisper, Any]:
    """The model and the SAE, on one device.

    Raises:
        SaeError: no such SAE, or one that does not fit the model. ConfigError: an SAE that names no model, or another
            one than was asked for.
    """
    from hooked_whisper import HookedWhisper
    from hooked_whisper.saes.coding import find_site
    from hooked_whisper.saes.hub import load_sae
    from hooked_whisper.splicing import _short

    loaded = load_sae(sae, hook=hook)
    own = loaded.cfg.metadata.model_name
    name = model or own
    if name is None:
        raise ConfigError(f"The metadata of {sae} name no model: pass --model, such as --model {DEFAULT_MODEL}.")
    whisper = HookedWhisper.from_pretrained(name, device=device, dtype=dtype)
    if own is not None and _short(own) != _short(whisper.cfg.model_name):
        raise ConfigError(
            f"{sae} was trained on {own}, and --model is {name}, in which its latents mean nothing: leave --model out, "
            "or pass an SAE of that model with --sae."
        )
    find_site(whisper, loaded, hook)
    return whisper, loaded.to(whisper.device)


def read_span(text: str) -> tuple[float, float]:
    """Seconds from "0.5:1.25".

    Raises:
        ConfigError: another form, or a span that is empty.
    """
    try:
        start, end = (float(part) for part in text.split(":"))
    except ValueError:
        raise ConfigError(f"{text!r} is no span: expected START:END in seconds, such as 0.5:1.25.") from None
    if not (math.isfinite(start) and math.isfinite(end) and 0 <= start < end):
        raise ConfigError(f"The span {text!r} is empty: expected 0 <= START < END, in seconds.")
    return start, end


def check_latents(latents: Sequence[int], n_latents: int) -> None:
    """Raises AnalysisError for the first latent that there is not."""
    for latent in latents:
        if not 0 <= latent < n_latents:
            raise AnalysisError(f"There is no latent {latent}: the SAE has {n_latents:,}, counted from 0.")


def check_table(path: Path | None) -> None:
    """Raises ConfigError unless tables can be written to a file of that ending."""
    if path is not None and path.suffix.lower() not in TABLES:
        raise ConfigError(f"{path} is of an unknown kind: expected a file that ends in {' or '.join(TABLES)}.")


def make_folder(path: Path) -> None:
    """A folder for what a command writes, made where it is missing.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"The folder {path} cannot be made ({error.strerror}): choose another one.") from error


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rows of one kind as CSV or JSON, by the file's ending; numbers in full, infinite ones and NaN as nothing.

    Raises:
        ConfigError: an unknown ending, or a folder that cannot be made.
    """
    check_table(path)
    make_folder(path.parent)
    plain = [{name: _plain(value) for name, value in row.items()} for row in rows]
    if path.suffix.lower() == ".json":
        path.write_text(json.dumps(plain, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return
    names = list(dict.fromkeys(name for row in plain for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(plain)


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def text_table(rows: Sequence[Mapping[str, Any]], formats: Mapping[str, str] | None = None) -> str:
    """Rows under their names, in columns: numbers to the right, texts to the left.

    Args:
        formats: of a column's numbers, such as {"auc": ".3f"}; others are written with three digits.
    """
    if not rows:
        return "(nothing)"
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[_cell(row.get(name), (formats or {}).get(name, ".3g")) for name in names] for row in rows]
    right = [not any(isinstance(row.get(name), str) for row in rows) for name in names]
    widths = [max(len(name), *(len(row[at]) for row in cells)) for at, name in enumerate(names)]

    def line(row: Sequence[str]) -> str:
        placed = zip(row, widths, right, strict=True)
        return "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in placed).rstrip()

    return "\n".join([line(names), *(line(row) for row in cells)])


def _cell(value: Any, spec: str) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return "only here" if math.isinf(value) else format(value, spec)
    return str(value)
