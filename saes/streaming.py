"""Rows of activations straight from a model that runs as it goes, without a disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import ConfigError, CorpusError, StoreError, did_you_mean
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.fingerprints import weights_fingerprint
from hooked_whisper.saes.harvest_plan import Packing, TextFrom, WindowLength
from hooked_whisper.saes.harvest_run import RATES, Runner, RunOptions, row_width

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

BUFFER_ROWS = 65_536


def stream(
    model: HookedWhisper,
    corpus: Corpus,
    *,
    hooks: str | Sequence[str],
    batch_size: int = 16,
    packing: Packing = "none",
    window: WindowLength = "full",
    text: TextFrom = "corpus",
    prompt: bool = False,
    buffer_rows: int = BUFFER_ROWS,
) -> ActivationStream:
    """Rows of activations as `harvest` would store them, made by the model while they are asked for.

    Args:
        model, corpus, hooks, packing, window, text, prompt: as in `harvest`.
        batch_size: windows that the model is given at a time.
        buffer_rows: rows that are mixed with each other, in memory as float32.

    Raises:
        HookNameError, ConfigError: hooks or options that do not fit.
    """
    names = model.resolve_names([hooks] if isinstance(hooks, str) else list(hooks))
    runner = Runner(model, names, RunOptions(batch_size, packing, window, text, prompt))
    return ActivationStream(runner, corpus, buffer_rows)


class ActivationStream:
    """An `ActivationSource` that runs the model; made by `stream`.

    Shuffled: the clips of a pass come in random order (a corpus that streams: in its own), and the rows of as many
    clips as fill the buffer are mixed. To begin further on, the model is not run for buffers that are skipped whole, if
    their numbers of rows are known without it: always, but for the model's own transcripts. Only audio is read then.
    """

    def __init__(self, runner: Runner, corpus: Corpus, buffer_rows: int = BUFFER_ROWS) -> None:
        if buffer_rows < 1:
            raise ConfigError(f"buffer_rows must be at least 1, got {buffer_rows}.")
        self.corpus = corpus
        self.runner = runner
        self.buffer_rows = buffer_rows
        self._widths = row_width(runner.model, runner.hooks)
        self._lengths: dict[str, int] = {}  # samples of the clips seen so far; -1: left out
        self._n_rows: int | None = None

    @property
    def hooks(self) -> tuple[str, ...]:
        """Full names of the hooks that it has."""
        return self.runner.hooks

    @property
    def model_name(self) -> str:
        """The model that the activations are of."""
        return self.runner.model.cfg.model_name

    @property
    def n_rows(self) -> int | None:
        """Rows of one pass; None until a pass was made."""
        return self._n_rows

    def width(self, hook: str) -> int:
        """Width of a row of `hook`: the `d_in` of an SAE there.

        Raises:
            StoreError: a hook that was not asked for.
        """
        if hook not in self._widths:
            raise StoreError(
                f"This stream has no activations of {hook!r}: it has {', '.join(self.hooks)}."
                + did_you_mean(hook, self.hooks)
            )
        return self._widths[hook]

    def describe(self) -> dict[str, Any]:
        """Where the rows come from, for the metadata of what is trained on them; ready for JSON."""
        corpus = self.corpus.describe()
        return {
            "source": "stream",
            "model": self.model_name,
            "weights_sha256": weights_fingerprint(self.runner.model),
            "hooks": dict(self._widths),
            "dtype": str(self.runner.model.dtype).removeprefix("torch."),
            "position": self.runner.position,
            "rate": RATES[self.runner.position],
            "n_rows": self._n_rows,
            "corpus": corpus,
            "licences": corpus.get("licences", []),
            "options": {**vars(self.runner.options), "buffer_rows": self.buffer_rows},
        }

    def batches(
        self, hook: str, batch_size: int, *, seed: int = 0, start: int = 0, repeat: bool = True
    ) -> Iterator[Float[Tensor, "batch width"]]:
        """Shuffled rows in batches of exactly `batch_size`, float32 on the CPU; see `ActivationSource`.

        Raises:
            StoreError: a hook that was not asked for, or activations that are not finite.
            CorpusError: a clip that cannot be read, unless the corpus skips those; a pass without any rows.
        """
        for batch in self.joint_batches([hook], batch_size, seed=seed, start=start, repeat=repeat):
            yield batch[hook]

    def joint_batches(
        self, hooks: Sequence[str], batch_size: int, *, seed: int = 0, start: int = 0, repeat: bool = True
    ) -> Iterator[dict[str, Float[Tensor, "batch width"]]]:
        """As `batches`, for several hooks at once: row i of each is of the same frame of the same clip."""
        for hook in hooks:
            self.width(hook)
        if batch_size < 1 or start < 0:
            raise StoreError(f"batch_size={batch_size}, start={start} cannot be: expected at least 1 and 0.")
        parts: list[dict[str, Tensor]] = []
        have = 0
        for buffer in self._buffers(seed, start, repeat=repeat):
            rows, at = len(buffer[hooks[0]]), 0
            while at < rows:
                size = min(batch_size - have, rows - at)
                parts.append({hook: buffer[hook][at : at + size] for hook in hooks})
                have, at = have + size, at + size
                if have == batch_size:
                    yield {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}
                    parts, have = [], 0
        if parts:
            yield {hook: torch.cat([part[hook] for part in parts]) for hook in hooks}

    def _buffers(self, seed: int, start: int, *, repeat: bool) -> Iterator[dict[str, Tensor]]:
        """Mixed rows, pass after pass, from row `start` of the order on."""
        skip, epoch = start, 0
        while True:
            if self._n_rows is not None and skip >= self._n_rows and repeat:
                epoch, skip = epoch + skip // self._n_rows, skip % self._n_rows
            total = 0
            for index, (items, waveforms, known) in enumerate(self._lots(seed, epoch)):
                if known is not None and known <= skip:
                    skip, total = skip - known, total + known
                    continue
                rows = self._rows(items, waveforms)
                count = len(rows[self.hooks[0]])
                total += count
                random = np.random.default_rng(np.random.SeedSequence([seed % 2**32, epoch, 1, index]))
                order = torch.from_numpy(random.permutation(count))[min(skip, count) :]
                skip -= min(skip, count)
                if len(order):
                    yield {hook: value[order] for hook, value in rows.items()}
            if total == 0:
                raise CorpusError(f"{self.corpus.name} gave no rows: all its clips were left out.")
            self._n_rows = total
            if not repeat:
                return
            epoch += 1

    def _rows(self, items: Sequence[CorpusItem], waveforms: Sequence[Tensor | None]) -> dict[str, Tensor]:
        from hooked_whisper.saes.store_writer import check_finite

        read = [item.load() if waveform is None else waveform for item, waveform in zip(items, waveforms, strict=True)]
        rows = self.runner.run(items, read).rows
        for hook, value in rows.items():
            check_finite(value, hook)
        return rows or {hook: torch.empty(0, self._widths[hook]) for hook in self.hooks}

    def _lots(self, seed: int, epoch: int) -> Iterator[tuple[list[CorpusItem], list[Tensor | None], int | None]]:
        """Clips that fill the buffer together, their audio where it was read, and their number of rows if known."""
        items: list[CorpusItem] = []
        waveforms: list[Tensor | None] = []
        size: float = 0
        exact = True
        for item in self._pass(seed, epoch):
            waveform = None
            if item.id not in self._lengths:
                waveform = self._read(item)
            if self._lengths[item.id] < 0:
                continue
            count = self.runner.count_rows(item, self._lengths[item.id])
            exact = exact and count is not None
            size += self._lengths[item.id] / 16_000 * 4 if count is None else count
            items.append(item)
            waveforms.append(waveform)
            if size >= self.buffer_rows:
                yield items, waveforms, int(size) if exact else None
                items, waveforms, size, exact = [], [], 0, True
        if items:
            yield items, waveforms, int(size) if exact else None

    def _read(self, item: CorpusItem) -> Tensor | None:
        """The audio of a clip, and its length noted."""
        try:
            waveform = item.load()
            self.runner.check_clip(item, len(waveform))
        except CorpusError as error:
            self.corpus.skip(item, error)
            self._lengths[item.id] = -1
            return None
        self._lengths[item.id] = len(waveform)
        return waveform

    def _pass(self, seed: int, epoch: int) -> Iterator[CorpusItem]:
        """The clips of one pass in their order."""
        if self.corpus.streams:
            yield from self.corpus
            return
        random = np.random.default_rng(np.random.SeedSequence([seed % 2**32, epoch, 0]))
        for index in random.permutation(len(self.corpus)).tolist():
            yield self.corpus[index]
