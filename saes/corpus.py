"""A corpus: audio clips with what is known of them, from folders, manifests, data sets, or the shipped speech.

    corpus = Corpus.from_manifest("prompts.jsonl")
    rest, held_out = corpus.where(language=["en", "fr"]).split(held_out=0.1, by="key")
    for item in rest:
        item.text, item.load()                           # mono float32 at 16 kHz, of any length

Audio is read when it is needed and not kept. A file that cannot be read stops the work, unless the corpus was told
`on_error="skip"`: then it is left out, listed in `corpus.skipped`, and logged as a warning.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import ConfigError, CorpusError, did_you_mean
from hooked_whisper.saes.corpus_item import FIELDS, ColumnNames, CorpusItem, Scalar
from hooked_whisper.saes.corpus_sources import dataset_items, folder_items, manifest_items
from hooked_whisper.saes.splitting import held_out_groups

if TYPE_CHECKING:
    from hooked_whisper.saes.survey import Survey
    from hooked_whisper.speech import Clip

logger = logging.getLogger(__name__)

# Run-time checking of options is ours, because its message says more than a type checker's.
if TYPE_CHECKING:
    OnError = Literal["raise", "skip"]
else:
    OnError = str


@dataclass(frozen=True)
class Skipped:
    """A clip that was left out, and why."""

    id: str
    error: str


class NoLengthError(CorpusError, TypeError):
    """A corpus that streams does not know how many clips it has."""


class Corpus:
    """Clips in a fixed order; see the constructors `from_folder`, `from_manifest`, `from_dataset`, `from_clips`.

    Attributes:
        name: what it is called in messages and in the metadata of what is made from it.
        on_error: "raise", or "skip" to leave out clips that cannot be read.
        skipped: the clips left out so far, each once; shared by all parts of a corpus.
    """

    def __init__(
        self,
        items: Iterable[CorpusItem] | Callable[[], Iterator[CorpusItem]],
        *,
        name: str = "corpus",
        on_error: OnError = "raise",
    ) -> None:
        """A corpus of items, or of a function that begins a new pass over items that stream.

        Raises:
            CorpusError: no items, or two with one id.
        """
        if on_error not in ("raise", "skip"):
            raise ConfigError(f"Unknown on_error {on_error!r}: expected 'raise' or 'skip'.")
        self.name = name
        self.on_error: OnError = on_error
        self.skipped: list[Skipped] = []
        self._survey: Survey | None = None
        self._pass: Callable[[], Iterator[CorpusItem]] | None = None
        self._items: tuple[CorpusItem, ...] = ()
        if callable(items):
            self._pass = items
            return
        self._items = tuple(items)
        if not self._items:
            raise CorpusError(f"{name} is empty: expected at least one clip.")
        seen: set[str] = set()
        for item in self._items:
            if item.id in seen:
                raise CorpusError(
                    f"{name} has two clips called {item.id!r}: ids must differ. Give the rows an `id` column."
                )
            seen.add(item.id)

    # Where a corpus comes from

    @classmethod
    def from_folder(
        cls,
        path: str | os.PathLike[str],
        *,
        language: str | None = None,
        speaker: str | None = None,
        on_error: OnError = "raise",
    ) -> Corpus:
        """Every audio file in a folder and the folders inside it, in the order of their paths.

        A clip's id is its path in the folder; its text is that of a `.txt` file of the same name beside it, if there is
        one. Hidden files and those whose ending is no audio format's are passed over.

        Args:
            path: the folder.
            language, speaker: of all clips.
            on_error: "skip" leaves out files that cannot be read, and lists them.

        Raises:
            CorpusError: no such folder, or no audio in it.
        """
        folder = Path(path)
        return cls(folder_items(folder, language, speaker), name=folder.resolve().name, on_error=on_error)

    @classmethod
    def from_manifest(
        cls,
        path: str | os.PathLike[str],
        *,
        path_column: str = "path",
        text_column: str | None = None,
        language_column: str | None = None,
        speaker_column: str | None = None,
        id_column: str | None = None,
        on_error: OnError = "raise",
    ) -> Corpus:
        """The files that a table lists: JSON lines, CSV or Parquet.

        Columns called `text`, `language`, `speaker` and `id` are taken for that, and so are `offset` and `duration`,
        which cut a segment out of the file, in seconds; all others are kept as they are. Relative paths start at the
        manifest. The id is the path as it is written (with the segment), unless there is a column of ids.

        Args:
            path: a file that ends in `.jsonl`, `.csv` or `.parquet`.
            path_column: the column with the paths.
            text_column, language_column, speaker_column, id_column: where these columns are called something else.
            on_error: "skip" leaves out files that cannot be read, and lists them. It is about audio: a malformed
                manifest is refused all the same.

        Raises:
            CorpusError: no such manifest, a malformed line (the message has its number), a column that is missing, a
                path out of the manifest's folder at which there is no file, or no rows.
        """
        names = ColumnNames(path_column, text_column, language_column, speaker_column, id_column)
        return cls(manifest_items(Path(path), names), name=Path(path).name, on_error=on_error)

    @classmethod
    def from_dataset(
        cls,
        dataset: Any,
        *,
        audio_column: str = "audio",
        text_column: str | None = None,
        language_column: str | None = None,
        speaker_column: str | None = None,
        id_column: str | None = None,
        name: str | None = None,
        on_error: OnError = "raise",
    ) -> Corpus:
        """The rows of a Hugging Face data set, map-style or streaming, or of any iterable of dictionaries.

        Audio may be whatever `load_audio` takes: a path, {"array", "sampling_rate"}, {"bytes", "path"}, torchcodec's
        decoder. A data set's own decoding is switched off, so that torchcodec is not needed. A data set that streams
        is read anew at each pass, and its length is not known; all others are read one row at a time, by index.

        Args:
            dataset: one split of it.
            audio_column: the column with the sound.
            text_column, language_column, speaker_column, id_column: columns with these; None takes the column of that
                very name if there is one. Without ids, clips are numbered.
            name: what to call it in messages and metadata.
            on_error: "skip" leaves out clips that cannot be read, and lists them.

        Raises:
            CorpusError: several splits, an iterator that can be read only once, a column that is missing, or no rows.
        """
        names = ColumnNames(audio_column, text_column, language_column, speaker_column, id_column)
        name = name or type(dataset).__name__
        return cls(dataset_items(dataset, names, name), name=name, on_error=on_error)

    @classmethod
    def from_clips(cls, clips: Sequence[Clip] | None = None, *, on_error: OnError = "raise") -> Corpus:
        """The speech that the repository ships (see `hooked_whisper.speech.clips`): all of it, or the clips given.

        Raises:
            CorpusError: an empty list. AudioError: the package is installed outside a clone of the repository.
        """
        from hooked_whisper import speech

        items = [
            CorpusItem(
                id=f"{clip.language}/{clip.key}",
                audio=clip.path,
                text=clip.text,
                language=clip.language,
                speaker=clip.speaker,
                columns={"key": clip.key, "seconds": clip.seconds},
            )
            for clip in (speech.clips() if clips is None else clips)
        ]
        return cls(items, name="shipped speech", on_error=on_error)

    @classmethod
    def join(cls, corpora: Sequence[Corpus], *, name: str | None = None) -> Corpus:
        """Several corpora as one: their clips one after the other; columns that a clip lacks are None.

        Args:
            corpora: of which all stop at a broken clip, or all skip it.
            name: what to call it; None takes their names.

        Raises:
            CorpusError: two clips with one id, or none. ConfigError: no corpora, or some that skip and some that stop.
        """
        if not corpora:
            raise ConfigError("No corpora to join: expected at least one.")
        rules: list[OnError] = list(dict.fromkeys(corpus.on_error for corpus in corpora))
        if len(rules) > 1:
            raise ConfigError(
                "Some of these corpora have on_error='raise' and some 'skip': open them all with the same, so that it "
                "is clear what happens at a broken clip."
            )
        kept, name = list(corpora), name or " + ".join(dict.fromkeys(corpus.name for corpus in corpora))
        streams = any(corpus.streams for corpus in kept)
        return cls(partial(chain.from_iterable, kept) if streams else chain(*kept), name=name, on_error=rules[0])

    # What it holds

    @property
    def streams(self) -> bool:
        """True if the clips are read anew at each pass and their number is not known."""
        return self._pass is not None

    @property
    def n_clips(self) -> int | None:
        """How many clips there are, broken ones included; None for a corpus that streams."""
        return None if self.streams else len(self._items)

    def __len__(self) -> int:
        if self.streams:
            raise NoLengthError(f"{self.name} streams: how many clips it has is known only after a pass over it.")
        return len(self._items)

    def __iter__(self) -> Iterator[CorpusItem]:
        """The clips in order; their audio is not read."""
        return iter(self._items) if self._pass is None else self._pass()

    def __getitem__(self, index: int) -> CorpusItem:
        return self._listed("be indexed")[index]

    def __repr__(self) -> str:
        return f"Corpus({self.name!r}, {'streaming' if self.streams else f'{len(self._items)} clips'})"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that `where` and `split` know: the fields of an item, and further columns.

        Raises:
            CorpusError: a corpus that streams, whose rows tell only when they come.
        """
        return (*FIELDS, *dict.fromkeys(name for item in self._listed("list its columns") for name in item.columns))

    def values(self, column: str) -> list[Scalar]:
        """The value of a column for each clip, None where a clip lacks it.

        Raises:
            CorpusError: no clip has such a column.
        """
        if column not in self.columns:
            raise CorpusError(
                f"{self.name} has no column {column!r}: it has {', '.join(self.columns)}."
                + did_you_mean(column, self.columns)
            )
        return [item.get(column) if column in FIELDS else item.columns.get(column) for item in self._items]

    def load(self, item: CorpusItem) -> Float[Tensor, "samples"] | None:
        """The waveform of a clip; None if it cannot be read and the corpus skips such clips, which is then reported.

        Raises:
            CorpusError: it cannot be read, and `on_error` is "raise".
        """
        try:
            return item.load()
        except CorpusError as error:
            self.skip(item, error)
            return None

    def skip(self, item: CorpusItem, error: CorpusError) -> None:
        """Reports a clip that is left out: in `skipped`, and as a warning; raises `error` if nothing may be skipped."""
        if self.on_error == "raise":
            raise error
        if all(item.id != known.id for known in self.skipped):
            self.skipped.append(Skipped(item.id, str(error)))
            logger.warning("Skipped: %s", error)

    def _listed(self, what: str) -> tuple[CorpusItem, ...]:
        if self.streams:
            raise CorpusError(f"{self.name} streams, so it cannot {what}: do that with the data set it comes from.")
        return self._items

    # Parts of it

    def shard(self, index: int, of: int) -> Corpus:
        """Every `of`-th clip, beginning with clip `index`: the parts of all indices together are the corpus.

        Raises:
            ConfigError: an index outside 0 to of - 1. CorpusError: a part without clips.
        """
        if of < 1 or not 0 <= index < of:
            raise ConfigError(f"shard({index}, {of}) does not exist: expected 0 <= index < of.")
        if self._pass is not None:
            begin = self._pass
            return self._part(lambda: islice(begin(), index, None, of))
        return self._part(self._items[index::of], f"shard {index} of {of}")

    def where(self, **columns: Any) -> Corpus:
        """The clips whose columns have the values given.

        Args:
            columns: for each column a value, a list of values, or a function from the value to True or False:
                `where(language=["en", "fr"], seconds=lambda seconds: seconds > 1)`.

        Raises:
            CorpusError: an unknown column, or no clip that matches.
        """
        if not columns:
            raise ConfigError("where() needs at least one column, such as where(language='en').")
        tests = {name: as_test(wanted) for name, wanted in columns.items()}
        if self._pass is not None:
            begin = self._pass
            return self._part(
                lambda: (item for item in begin() if all(test(item.get(name)) for name, test in tests.items()))
            )
        kept = list(self._items)
        for name, test in tests.items():
            matching = {id(item) for item, value in zip(self._items, self.values(name), strict=True) if test(value)}
            kept = [item for item in kept if id(item) in matching]
        said = ", ".join(f"{name}={wanted!r}" for name, wanted in columns.items())
        hint = "".join(f" {name} is one of {_sample(self.values(name))}." for name in columns) if not kept else ""
        return self._part(kept, f"where({said})", hint)

    def split(self, held_out: float = 0.1, *, seed: int = 0, by: str = "id") -> tuple[Corpus, Corpus]:
        """Two corpora, the second with about `held_out` of the clips; no value of column `by` is on both sides.

        The same seed gives the same split, also of a store that was harvested from the corpus. Clips without a value
        there are groups of their own.

        Args:
            held_out: the part to hold out, between 0 and 1.
            seed: another seed holds out other groups.
            by: the column whose values stay together: "key" keeps the translations of a sentence on one side,
                "speaker" a speaker.

        Raises:
            CorpusError: an unknown column, or a single group, which cannot be split.
        """
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out must be a part between 0 and 1, got {held_out!r}.")
        self._listed("be split")
        values = zip(self._items, self.values(by), strict=True)
        groups = [f"\0{item.id}" if value is None else str(value) for item, value in values]
        outside = held_out_groups(groups, held_out, seed)
        if not outside:
            raise CorpusError(f"{self.name} cannot be split by {by!r}: all its clips are of one group, {groups[0]!r}.")
        sides = ([], [])
        for item, group in zip(self._items, groups, strict=True):
            sides[group in outside].append(item)
        return self._part(sides[0], "split"), self._part(sides[1], "split")

    def _part(
        self, items: Sequence[CorpusItem] | Callable[[], Iterator[CorpusItem]], what: str = "", hint: str = ""
    ) -> Corpus:
        if not callable(items) and not items:
            raise CorpusError(f"{self.name} has no clip in {what}.{hint}")
        part = Corpus(items, name=self.name, on_error=self.on_error)
        part.skipped = self.skipped
        return part

    # What it is

    def survey(self) -> Survey:
        """Goes once through all audio: how long each clip is, and the checksum of everything; kept for the next call.

        Raises:
            CorpusError: a clip that cannot be read, unless such clips are skipped; no clip at all.
        """
        from hooked_whisper.saes.survey import survey

        if self._survey is None:
            self._survey = survey(self)
        return self._survey

    def fingerprint(self) -> str:
        """SHA-256 of the corpus: of all clips in their order, what is known of them, and the content of their audio.

        Where the files lie does not matter. Reads all audio once, and remembers.

        Raises:
            CorpusError: as `survey`.
        """
        return self.survey().fingerprint

    def describe(self) -> dict[str, Any]:
        """Name, number of clips, languages, speakers and licences, as far as they are known without reading audio."""
        about: dict[str, Any] = {"name": self.name, "n_clips": self.n_clips}
        if self.streams:
            return about
        known = self.columns
        for label, names in {
            "languages": ["language"],
            "speakers": ["speaker"],
            "licences": ["licence", "license"],
        }.items():
            found = {str(v) for name in names if name in known for v in self.values(name) if v is not None}
            about[label] = sorted(found)
        return about


def as_test(wanted: Any) -> Callable[[Any], bool]:
    """A value, a list of values or a function, as a function."""
    if callable(wanted):
        return lambda value: bool(wanted(value))
    if isinstance(wanted, list | tuple | set | frozenset):
        return lambda value: value in wanted
    return lambda value: value == wanted


def _sample(values: Sequence[Any], n: int = 8) -> str:
    distinct = list(dict.fromkeys(values))
    return ", ".join(map(repr, distinct[:n])) + (f" and {len(distinct) - n} more" if len(distinct) > n else "")
