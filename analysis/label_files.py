"""Labels from files, and into files: TextGrid (Praat), CTM, JSON, CSV.

labels = read_labels("alignments/")                    # a folder of TextGrids, one for each clip
labels = read_labels("words.ctm")
labels = read_labels("labels.csv", columns={"clip": "utterance", "value": "phone"}, tier="phone")
write_labels(labels, "labels.json")
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import math
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hooked_whisper.analysis.labels import Labels, Row
from hooked_whisper.errors import AnalysisError, MissingExtraError

if TYPE_CHECKING:
    Format = Literal["textgrid", "ctm", "json", "csv"]
else:
    Format = str  # checked here, with a message that says more than a type checker's

FORMATS = {".textgrid": "textgrid", ".ctm": "ctm", ".json": "json", ".csv": "csv"}
CSV_COLUMNS = ("clip", "tier", "start", "end", "value")
# What aligners write where nothing is said.
SILENCES = ("", "sil", "sp", "spn", "<eps>", "SIL")


def read_labels(
    path: str | os.PathLike[str],
    *,
    format: Format | None = None,
    tier: str = "word",
    tiers: Collection[str] | None = None,
    columns: Mapping[str, str] | None = None,
    silences: Collection[str] = SILENCES,
    tolerance: float = 0.0,
) -> Labels:
    """Labels from a file, or from all TextGrids in a folder and the folders inside it.

    - TextGrid: long, short or Praat's JSON form, in UTF-8 or UTF-16; the clip is called as the file, without its ending
      (in a folder: with the path inside it). A file lasts as long as it says.
    - CTM: lines `clip channel start duration value [confidence]`; `;;` begins a comment. One tier.
    - CSV: a header with `clip`, `start`, `end`, `value`, and `tier` if there are several.
    - JSON: what `write_labels` writes.

    Args:
        path: where they are; `labels.for_clips(ids)` pairs their names with a corpus's.
        format: of the file; None goes by its ending.
        tier: what to call the one tier of a CTM file, or of a CSV file without such a column.
        tiers: which tiers to read; None reads all.
        columns: of a CSV file, where they are called something else: {"clip": "utterance"}.
        silences: values that stand for nothing said; these intervals are left out.
        tolerance: an interval that runs into the next by at most this many seconds is cut short.

    Raises:
        AnalysisError: a file that is missing, malformed (with its line) or of an unknown kind, tiers that are not there
            or hold points, and all that `Labels` refuses. MissingExtraError: a TextGrid without praatio.
    """
    file = Path(path)
    if file.is_dir():
        grids = sorted(found for found in file.rglob("*") if found.suffix.lower() == ".textgrid")
        if not grids:
            raise AnalysisError(f"{file} holds no TextGrid: expected files that end in .TextGrid, or one file's path.")
        named = {grid.relative_to(file).with_suffix("").as_posix(): grid for grid in grids}
        read, durations = _read_grids(named, tiers)
    elif not file.is_file():
        raise AnalysisError(f"No labels at {file} (looked from {Path.cwd()}).")
    else:
        kind = _format(file, format)
        if kind == "textgrid":
            read, durations = _read_grids({file.stem: file}, tiers)
        elif kind == "json":
            labels = _read_json(file)
            _need_tiers(tiers or (), labels.tier_names, str(file))
            return labels.where(tiers=tiers, values=lambda value: value.strip() not in silences)
        else:
            durations = {}
            read = list(_read_ctm(file, tier) if kind == "ctm" else _read_csv(file, tier, columns or {}))
        if tiers is not None:
            there = {row[1] for _, row in read}
            _need_tiers(tiers, there, str(file))
            read = [(where, row) for where, row in read if row[1] in tiers]
    said = [(where, (*row[:4], row[4].strip())) for where, row in read if row[4].strip() not in silences]
    for where, row in said:
        if not (math.isfinite(row[2]) and math.isfinite(row[3])):
            raise AnalysisError(f"{where}: {row[2]} to {row[3]} is no time: expected seconds.")
    found = Labels.from_rows((row for _, row in said), durations=durations, tolerance=tolerance)
    return _with_empty_tiers(found, read)


def _with_empty_tiers(labels: Labels, read: list[tuple[str, Row]]) -> Labels:
    """Clips and tiers in which all is silence were looked at, too."""
    tiers = {clip: dict(own) for clip, own in labels.tiers.items()}
    for _, (clip, tier, *_) in read:
        tiers.setdefault(clip, {}).setdefault(tier, ())
    return Labels(tiers, labels.durations)


def _format(file: Path, format: str | None) -> str:
    kind = FORMATS.get(file.suffix.lower()) if format is None else format
    if kind is None or kind not in FORMATS.values():
        raise AnalysisError(
            f"{file} is of an unknown kind ({format or file.suffix or 'no ending'}): expected "
            f"{', '.join(FORMATS.values())}; format= says which where the ending does not."
        )
    return kind


def _need_tiers(wanted: Collection[str], there: Collection[str], where: str) -> None:
    if lacking := [tier for tier in wanted if tier not in there]:
        raise AnalysisError(f"{where} has no tier {lacking[0]!r}: it has {', '.join(sorted(there)) or 'none'}.")


def _text(file: Path) -> str:
    """A text file in UTF-8 or UTF-16, told apart by the mark at its start."""
    content = file.read_bytes()
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnalysisError(
            f"{file} is neither UTF-8 nor UTF-16 ({error.reason} at byte {error.start}): convert it."
        ) from error


def _read_grids(
    grids: Mapping[str, Path], tiers: Collection[str] | None
) -> tuple[list[tuple[str, Row]], dict[str, float]]:
    try:
        from praatio.utilities import errors, textgrid_io
    except ImportError as error:
        raise MissingExtraError(
            "TextGrids need praatio, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    read: list[tuple[str, Row]] = []
    durations: dict[str, float] = {}
    for clip, file in grids.items():
        text = _text(file)
        try:
            grid = textgrid_io.parseTextgridStr(text, includeEmptyIntervals=True)
            begin, durations[clip] = float(grid["xmin"]), float(grid["xmax"])
            entries = {str(one["name"]): (one["class"], list(one["entries"])) for one in grid["tiers"]}
        except (errors.PraatioException, ValueError, LookupError, TypeError, AttributeError) as error:
            raise AnalysisError(f"{file} is no TextGrid, or a damaged one: {error}") from error
        if begin != 0:
            raise AnalysisError(f"{file} begins at {begin} s: expected a TextGrid whose times count from 0.")
        if len(entries) < len(grid["tiers"]):
            raise AnalysisError(f"{file} has two tiers of one name: {[one['name'] for one in grid['tiers']]}.")
        _need_tiers(tiers or (), entries, str(file))
        for tier, (kind, marks) in entries.items():
            if tiers is not None and tier not in tiers:
                continue
            if kind != "IntervalTier":
                raise AnalysisError(
                    f"{file}: tier {tier!r} holds points, which last no time: choose others with tiers=."
                )
            read += [(str(file), (clip, tier, float(mark[0]), float(mark[1]), str(mark[2]))) for mark in marks]
    return read, durations


def _read_json(file: Path) -> Labels:
    try:
        data = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise AnalysisError(f"{file}, line {error.lineno} is no JSON: {error.msg}.") from error
    return Labels.from_dict(data)


def _read_ctm(file: Path, tier: str) -> Iterator[tuple[str, Row]]:
    channels: dict[str, str] = {}
    for number, line in enumerate(_text(file).splitlines(), start=1):
        where, cells = f"{file}, line {number}", line.split()
        if not cells or line.startswith(";;"):
            continue
        if len(cells) not in (5, 6):
            raise AnalysisError(
                f"{where} has {len(cells)} columns: expected clip, channel, start, duration, value, and perhaps a "
                "confidence."
            )
        clip, channel, start, seconds, value = cells[:5]
        if channels.setdefault(clip, channel) != channel:
            raise AnalysisError(f"{where}: clip {clip!r} has channels {channels[clip]} and {channel}: keep one.")
        begin = _number(start, "start", where)
        yield where, (clip, tier, begin, begin + _number(seconds, "duration", where), value)


def _read_csv(file: Path, tier: str, columns: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    if unknown := [name for name in columns if name not in CSV_COLUMNS]:
        raise AnalysisError(f"columns= names {unknown[0]!r}: expected some of {', '.join(CSV_COLUMNS)}.")
    reader = csv.DictReader(io.StringIO(_text(file), newline=""), strict=True)
    names = {name: columns.get(name, name) for name in CSV_COLUMNS}
    header = list(reader.fieldnames or [])
    if lacking := [names[n] for n in CSV_COLUMNS if names[n] not in header and (n != "tier" or n in columns)]:
        raise AnalysisError(
            f"{file} has no column {lacking[0]!r}, only {', '.join(header) or 'none'}: "
            "columns= says what they are called."
        )
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row or None in row.values():
                raise AnalysisError(f"{where} has more or fewer cells than the header's {len(header)}.")
            start, end = (_number(row[names[name]], name, where) for name in ("start", "end"))
            yield where, (row[names["clip"]], row.get(names["tier"]) or tier, start, end, row[names["value"]])
    except csv.Error as error:
        raise AnalysisError(f"{file}, line {reader.line_num + 1} is no CSV: {error}.") from error


def _number(cell: str, name: str, where: str) -> float:
    try:
        return float(cell)
    except ValueError as error:
        raise AnalysisError(f"{where}: {name} is {cell!r}, expected seconds.") from error


def write_labels(labels: Labels, path: str | os.PathLike[str], *, format: Format | None = None) -> Path:
    """Writes labels to a file that `read_labels` reads; returns its path.

    JSON keeps everything. CSV keeps no durations. CTM takes one tier, and values without spaces. TextGrids are one file
    for each clip: with one clip `path` is the file's, else the folder's.

    Raises:
        AnalysisError: an unknown kind, or labels that the format cannot hold. MissingExtraError: TextGrids without
            praatio.
    """
    file = Path(path)
    kind = "textgrid" if format is None and not file.suffix and len(labels) > 1 else _format(file, format)
    if kind == "textgrid":
        _write_grids(labels, file)
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    if kind == "json":
        file.write_text(json.dumps(labels.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")
    elif kind == "csv":
        with file.open("w", encoding="utf-8", newline="") as out:
            csv.writer(out).writerows([CSV_COLUMNS, *labels.rows()])
    else:
        file.write_text("".join(f"{line}\n" for line in _ctm_lines(labels)), encoding="utf-8")
    return file


def _ctm_lines(labels: Labels) -> Iterator[str]:
    if len(labels.tier_names) != 1:
        raise AnalysisError(
            f"CTM holds one tier, and the labels have {list(labels.tier_names)}: choose with where(tiers=[...])."
        )
    for clip, _, start, end, value in labels.rows():
        for text in (clip, value):
            if len(text.split()) != 1:
                raise AnalysisError(f"CTM holds no spaces, and {text!r} has some: write JSON, CSV or a TextGrid.")
        yield f"{clip} 1 {start:.6f} {end - start:.6f} {value}"


def _write_grids(labels: Labels, path: Path) -> None:
    try:
        from praatio import textgrid
    except ImportError as error:
        raise MissingExtraError(
            "TextGrids need praatio, which cannot be imported: pip install 'hooked-whisper[analysis]'."
        ) from error
    if not len(labels):
        raise AnalysisError("There are no labels to write.")
    for clip, tiers in labels.tiers.items():
        ends = [one.end for intervals in tiers.values() for one in intervals]
        # Times that were rounded may end after their clip, which a TextGrid may not.
        seconds = max([labels.durations.get(clip, 0.0), *ends])
        if seconds == 0:
            raise AnalysisError(f"Clip {clip!r} has no labels and no duration, so its TextGrid would last no time.")
        grid: Any = textgrid.Textgrid(0.0, seconds)
        for tier, intervals in tiers.items():
            entries: Any = [(one.start, one.end, one.value) for one in intervals]
            grid.addTier(textgrid.IntervalTier(tier, entries, 0.0, seconds))
        target = path if len(labels) == 1 else path / f"{clip}.TextGrid"
        target.parent.mkdir(parents=True, exist_ok=True)
        grid.save(str(target), "long_textgrid", includeBlankSpaces=True)
