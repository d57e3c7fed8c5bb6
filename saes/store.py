"""Activations on disk: read in order or shuffled, mapped into memory, whole or in part.

store = ActivationStore.open("acts/")
store.rows("encoder.hook_out", 0, 1500)              # [1500 width], mapped
store.frames                                         # one row for each frame: clip, frame, time, language, ...
rest, held_out = store.split(held_out=0.1, by="key")
for batch in rest.batches("encoder.hook_out", 4096, seed=0): ...
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hooked_whisper.errors import ConfigError, StoreError, did_you_mean
from hooked_whisper.saes.arrow import import_pyarrow
from hooked_whisper.saes.corpus import as_test
from hooked_whisper.saes.shuffling import CHUNK, Shuffle, Spans
from hooked_whisper.saes.splitting import held_out_groups
from hooked_whisper.saes.store_files import CLIPS, Shard, StoreManifest, read_store, sha256

_CHUNK = 1 << 16  # rows at a time, where all are gone through
_BUFFER_ROWS = 512


class ActivationStore:
    """Activations on disk, or a part of them; an `ActivationSource`.

    `where` and `split` give parts, `join` puts stores of one model together; nothing is copied. Rows are numbered from
    0 in each part.

    Attributes:
        manifests: what the folders that it reads from say of themselves.
        parts: how it was chosen from them, one clause each.
        report: how the harvest went that has just made it; None if it was opened.
    """

    def __init__(
        self, manifests: Sequence[StoreManifest], spans: Spans | None = None, parts: Sequence[str] = ()
    ) -> None:
        self.manifests = tuple(manifests)
        self.parts = tuple(parts)
        self.report: Any = None
        self._shards: list[Shard] = [shard for manifest in manifests for shard in manifest.shards]
        self._first = np.cumsum([0, *(shard.n_rows for shard in self._shards)])
        self._spans = Spans.whole(int(self._first[-1])) if spans is None else spans
        self._mapped: dict[str, list[Tensor]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> ActivationStore:
        """Opens a store, checking that its files are there and belong together; `verify` also reads them.

        Raises:
            StoreError: no store, an unfinished one, or one with a file that is missing, damaged or foreign.
        """
        return cls([read_store(Path(path))])

    @classmethod
    def join(cls, stores: Sequence[ActivationStore]) -> ActivationStore:
        """Several stores, or parts of stores, as one: their rows one after the other.

        Raises:
            StoreError: stores of different models, weights, hooks or kinds of rows.
        """
        if not stores:
            raise StoreError("No stores to join: expected at least one.")
        first = stores[0].manifests[0].settings
        for store in stores[1:]:
            for other in (manifest.settings for manifest in store.manifests):
                for name in ("model", "weights", "hooks", "position", "dtype"):
                    mine, theirs = getattr(first, name), getattr(other, name)
                    if mine != theirs:
                        raise StoreError(
                            f"These stores do not belong together: {name} is {mine!r} in one and {theirs!r} in another."
                        )
        spans, offset = [], 0
        for store in stores:
            spans.append(store._spans.shifted(offset))
            offset += int(store._first[-1])
        manifests = [manifest for store in stores for manifest in store.manifests]
        return cls(manifests, Spans.join(spans), [part for store in stores for part in store.parts])

    # What it is

    @property
    def hooks(self) -> tuple[str, ...]:
        """Full names of the hooks that it has."""
        return tuple(self.manifests[0].settings.hooks)

    @property
    def model_name(self) -> str:
        """The model that the activations are of."""
        return self.manifests[0].settings.model

    @property
    def n_rows(self) -> int:
        """Rows of each hook."""
        return self._spans.n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __repr__(self) -> str:
        what = f"{self.n_rows:,} rows of {', '.join(self.hooks)} of {self.model_name}"
        return f"ActivationStore({what}{''.join(f'; {part}' for part in self.parts)})"

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations on disk, and of what `rows` gives."""
        from hooked_whisper.saes.store_files import DTYPES

        return DTYPES[self.manifests[0].settings.dtype]

    @property
    def skipped(self) -> list[dict[str, str]]:
        """Clips that the harvest left out, and why: {"id", "error"}."""
        return [entry for manifest in self.manifests for entry in manifest.skipped]

    def width(self, hook: str) -> int:
        """Width of a row of `hook`: the `d_in` of an SAE there.

        Raises:
            StoreError: a hook that the store does not have.
        """
        return self.manifests[0].settings.hooks[self._known(hook)]

    def _known(self, hook: str) -> str:
        if hook not in self.hooks:
            raise StoreError(
                f"This store has no activations of {hook!r}: it has {', '.join(self.hooks)}."
                + did_you_mean(hook, self.hooks)
            )
        return hook

    def describe(self) -> dict[str, Any]:
        """Where the rows come from, for the metadata of what is trained on them; ready for JSON."""
        settings = self.manifests[0].settings
        corpora = [dict(manifest.settings.corpus) for manifest in self.manifests]
        return {
            "source": "store",
            "model": settings.model,
            "weights_sha256": settings.weights,
            "hooks": dict(settings.hooks),
            "dtype": settings.dtype,
            "position": settings.position,
            "rate": settings.rate,
            "n_rows": self.n_rows,
            "n_clips": self.clips.num_rows,
            "corpus": corpora[0] if len(corpora) == 1 else corpora,
            "licences": sorted({licence for corpus in corpora for licence in corpus.get("licences", [])}),
            "options": dict(settings.options),
            "part": list(self.parts),
        }

    # Tables

    @cached_property
    def clips(self) -> Any:
        """A `pyarrow.Table` with one row for each clip: clip, shard, first_row, n_rows, text, language, speaker, ...

        `first_row` counts in this part.

        Raises:
            StoreError: the table is damaged. MissingExtraError: pyarrow is not installed.
        """
        pyarrow, _ = import_pyarrow()
        tables, offset = [], 0
        for manifest in self.manifests:
            table = self._read_table(manifest.folder / CLIPS)
            first = pyarrow.array(table["first_row"].to_numpy() + offset)
            tables.append(table.set_column(table.column_names.index("first_row"), "first_row", first))
            offset += manifest.n_rows
        table = pyarrow.concat_tables(tables, promote_options="permissive")
        first, inside = self._spans.position_of(table["first_row"].to_numpy())
        table = table.set_column(table.column_names.index("first_row"), "first_row", pyarrow.array(first))
        return table.filter(pyarrow.array(inside & (table["n_rows"].to_numpy() > 0)))

    @cached_property
    def frames(self) -> Any:
        """A `pyarrow.Table` with one row for each row of activations: clip, frame, time, language, speaker, ...

        Raises:
            StoreError: a table is damaged. MissingExtraError: pyarrow is not installed.
        """
        pyarrow, _ = import_pyarrow()
        tables = [self._read_table(shard.table) for shard in self._shards]
        whole = pyarrow.concat_tables(tables, promote_options="permissive").unify_dictionaries()
        return pyarrow.concat_tables([whole.slice(start, stop - start) for start, stop in self._spans.pairs()])

    def _read_table(self, path: Path) -> Any:
        pyarrow, parquet = import_pyarrow()
        try:
            return parquet.read_table(path)
        except (pyarrow.ArrowException, OSError) as error:
            raise StoreError(f"{path} is damaged ({error}): copy it again, or harvest again.") from error

    # Rows

    def _tensors(self, hook: str) -> list[Tensor]:
        """The mapped activations of each shard."""
        if hook not in self._mapped:
            self._mapped[hook] = [_map(shard.activations, self._known(hook)) for shard in self._shards]
        return self._mapped[hook]

    def rows(self, hook: str, start: int = 0, stop: int | None = None) -> Float[Tensor, "row width"]:
        """Rows `start` to `stop` of a hook, in the store's dtype.

        Mapped, not read, where they lie in one piece; what is written into them does not reach the disk.

        Raises:
            StoreError: a hook that the store does not have, or rows outside of it.
        """
        tensors = self._tensors(hook)
        stop = self.n_rows if stop is None else stop
        if not 0 <= start <= stop <= self.n_rows:
            raise StoreError(f"Rows {start} to {stop} do not exist: this store has {self.n_rows}, counted from 0.")
        pieces = []
        for first, last in self._spans.slice(start, stop):
            shard = int(np.searchsorted(self._first, first, side="right")) - 1
            while first < last:
                end = min(last, int(self._first[shard + 1]))
                offset = int(self._first[shard])
                pieces.append(tensors[shard][first - offset : end - offset])
                first, shard = end, shard + 1
        if not pieces:
            return torch.empty(0, self.width(hook), dtype=self.dtype)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def clip_rows(self, hook: str, clip: str) -> Float[Tensor, "row width"]:
        """All rows of one clip.

        Raises:
            StoreError: a clip that is not here.
        """
        ids = self.clips["clip"].to_pylist()
        if clip not in ids:
            raise StoreError(f"No clip is called {clip!r} here.{did_you_mean(clip, ids)}")
        index = ids.index(clip)
        first = self.clips["first_row"][index].as_py()
        return self.rows(hook, first, first + self.clips["n_rows"][index].as_py())

    def ordered_batches(self, hook: str, batch_size: int, *, start: int = 0) -> Iterator[Float[Tensor, "batch width"]]:
        """All rows from `start` on in their order, float32; the last batch may be smaller."""
        _check_batch(batch_size, start)
        for first in range(start, self.n_rows, batch_size):
            yield self.rows(hook, first, min(first + batch_size, self.n_rows)).to(torch.float32)

    def batches(
        self,
        hook: str,
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        repeat: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[Float[Tensor, "batch width"]]:
        """Shuffled rows in batches of exactly `batch_size`, on the CPU; see `ActivationSource`.

        How they are shuffled, so that reading stays fast: `hooked_whisper.saes.shuffling.Shuffle`. With `dtype` that of
        the store, nothing is converted, which takes half the time and half the way to a GPU.

        Raises:
            StoreError: a hook that the store does not have, or a batch size or start that cannot be.
        """
        options = {"seed": seed, "start": start, "repeat": repeat, "dtype": dtype}
        for batch in self.joint_batches([hook], batch_size, **options):
            yield batch[hook]

    def joint_batches(
        self,
        hooks: Sequence[str],
        batch_size: int,
        *,
        seed: int = 0,
        start: int = 0,
        repeat: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[dict[str, Float[Tensor, "batch width"]]]:
        """As `batches`, for several hooks at once: row i of each is of the same frame of the same clip."""
        _check_batch(batch_size, start)
        gathering = {hook: _Gathering(self._tensors(hook), dtype) for hook in hooks}
        shuffle = Shuffle(self._spans, self._first, seed)
        position, stop = start, None if repeat else self.n_rows
        chunks = shuffle.chunks(start, repeat=repeat)
        pending: list[tuple[int, np.ndarray]] = []
        while stop is None or position < stop:
            size = batch_size if stop is None else min(batch_size, stop - position)
            plan, pending = _take(chunks, pending, size)
            yield {hook: gathering[hook].rows(plan, size) for hook in hooks}
            position += size

    def mean(self, hook: str) -> Float[Tensor, "width"]:
        """The mean row, summed in float64, as float32."""
        total = torch.zeros(self.width(hook), dtype=torch.float64)
        for batch in self.ordered_batches(hook, _CHUNK):
            total += batch.sum(0, dtype=torch.float64)
        return (total / self.n_rows).float()

    # Parts

    def where(self, **columns: Any) -> ActivationStore:
        """The rows of the clips whose columns have the values given, as in `Corpus.where`.

        Raises:
            StoreError: an unknown column, or no clip that matches.
        """
        if not columns:
            raise ConfigError("where() needs at least one column, such as where(language='en').")
        keep = np.ones(self.clips.num_rows, dtype=bool)
        for name, wanted in columns.items():
            test = as_test(wanted)
            keep &= np.array([test(value) for value in self._column(name)], dtype=bool)
        named = (f"{name}={'a function' if callable(wanted) else repr(wanted)}" for name, wanted in columns.items())
        said = f"where({', '.join(named)})"
        if not keep.any():
            raise StoreError(f"This store has no clip in {said}.")
        if any(callable(wanted) for wanted in columns.values()):  # what a function chose, it alone does not say
            clips = np.array(self.clips["clip"].to_pylist(), dtype=object)[keep]
            said += f": {len(clips)} clips, checksum {hashlib.sha256(chr(0).join(clips).encode()).hexdigest()[:16]}"
        return self._part(keep, said)

    def split(
        self, held_out: float = 0.1, *, seed: int = 0, by: str = "clip"
    ) -> tuple[ActivationStore, ActivationStore]:
        """Two parts, the second with about `held_out` of the clips; no value of column `by` is on both sides.

        The same seed gives the same split as `Corpus.split` of the corpus that the store was harvested from.

        Args:
            held_out: the part to hold out, between 0 and 1.
            seed: another seed holds out other groups.
            by: the column whose values stay together: "clip", or "key", "speaker" and the like.

        Raises:
            StoreError: an unknown column, or a single group, which cannot be split.
        """
        if not 0 < held_out < 1:
            raise ConfigError(f"held_out must be a part between 0 and 1, got {held_out!r}.")
        values = zip(self.clips["clip"].to_pylist(), self._column(by), strict=True)
        groups = [f"\0{clip}" if value is None else str(value) for clip, value in values]
        outside = held_out_groups(groups, held_out, seed)
        if not outside:
            raise StoreError(f"This store cannot be split by {by!r}: all its clips are of one group, {groups[0]!r}.")
        is_out = np.array([group in outside for group in groups])
        said = f"split(held_out={held_out}, seed={seed}, by={by!r})"
        return self._part(~is_out, f"rest of {said}"), self._part(is_out, f"held-out part of {said}")

    def _column(self, name: str) -> list[Any]:
        if name not in self.clips.column_names:
            known = self.clips.column_names
            raise StoreError(
                f"This store has no column {name!r}: it has {', '.join(known)}.{did_you_mean(name, known)}"
            )
        return self.clips[name].to_pylist()

    def _part(self, keep: np.ndarray, said: str) -> ActivationStore:
        first = self.clips["first_row"].to_numpy()[keep]
        spans = self._spans.choose(first, first + self.clips["n_rows"].to_numpy()[keep])
        return ActivationStore(self.manifests, spans, [*self.parts, said])

    def verify(self) -> None:
        """Reads every file and compares its checksum.

        Raises:
            StoreError: files that are damaged, all of them named.
        """
        wrong = [
            str(manifest.folder / name)
            for manifest in self.manifests
            for name, about in manifest.files.items()
            if sha256(manifest.folder / name) != about["sha256"]
        ]
        if wrong:
            raise StoreError(
                f"{len(wrong)} files are not what was harvested (SHA-256 differs): {', '.join(wrong)}. Copy them "
                "again, or harvest again."
            )


def _check_batch(batch_size: int, start: int) -> None:
    if batch_size < 1 or start < 0:
        raise StoreError(f"batch_size={batch_size}, start={start} cannot be: expected at least 1 and 0.")


def _map(path: Path, hook: str) -> Tensor:
    """One tensor of a shard, mapped into memory: pages are read when they are touched, and never written back."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor(hook)
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path} cannot be read ({error}): copy it again, or harvest again.") from error


def _take(
    chunks: Iterator[tuple[int, np.ndarray]], pending: list[tuple[int, np.ndarray]], size: int
) -> tuple[list[tuple[int, np.ndarray]], list[tuple[int, np.ndarray]]]:
    """The chunks that make up the next `size` rows, and what is left of the last one."""
    plan: list[tuple[int, np.ndarray]] = []
    have = 0
    while have < size:
        shard, rows = pending.pop() if pending else next(chunks)
        wanted = size - have
        plan.append((shard, rows[:wanted]))
        if len(rows) > wanted:
            pending.append((shard, rows[wanted:]))
        have += len(plan[-1][1])
    return plan, pending


class _Gathering:
    """Copies rows out of mapped shards into batches.

    NumPy copies rows by number faster than torch does, whatever their type, so it sees them as integers of that size.
    What is converted goes through a buffer that is small enough to stay in the processor's cache.
    """

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.wanted = dtype
        self.dtype = tensors[0].dtype
        self.width = tensors[0].shape[1]
        self._as_integers = torch.int32 if self.dtype.itemsize == 4 else torch.int16
        self._shards = [tensor.view(self._as_integers).numpy() for tensor in tensors]
        self._buffer = torch.empty(_BUFFER_ROWS + CHUNK, self.width, dtype=self.dtype)

    def rows(self, plan: Sequence[tuple[int, np.ndarray]], size: int) -> Float[Tensor, "batch width"]:
        """The `size` rows of a plan: shards, and rows of each."""
        found = torch.empty(size, self.width, dtype=self.wanted)
        direct = self.dtype == self.wanted
        target = (found if direct else self._buffer).view(self._as_integers).numpy()
        done, at = 0, 0
        for shard, rows in plan:
            stop = at + len(rows)
            # "clip" lets NumPy write into the target; no row is outside.
            np.take(self._shards[shard], rows, axis=0, out=target[at:stop], mode="clip")
            at = stop
            if not direct and at >= _BUFFER_ROWS:
                found[done : done + at] = self._buffer[:at]
                done, at = done + at, 0
        if not direct:
            found[done : done + at] = self._buffer[:at]
        return found
