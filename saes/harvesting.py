"""Activations of a model on a corpus: into a store on disk (`harvest`), or as they come (`stream`).

    store = harvest(model, corpus, hooks="encoder.hook_out", out="acts/", packing="windows")

A harvest can be killed at any moment: called again, it goes on where it was, and the files come out the same, byte for
byte. Under `torchrun` the processes share the work, and together write what one would have written; they need to see
one folder, and nothing else of each other.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from tqdm import tqdm

from hooked_whisper.errors import ConfigError, CorpusError, StoreError
from hooked_whisper.saes.arrow import import_pyarrow
from hooked_whisper.saes.corpus import Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.fingerprints import weights_fingerprint
from hooked_whisper.saes.harvest_plan import (
    Packing,
    StoreDType,
    TextFrom,
    WindowLength,
    cost,
    into_blocks,
    shared_out,
)
from hooked_whisper.saes.harvest_run import RATES, Runner, RunOptions, row_width
from hooked_whisper.saes.store import ActivationStore
from hooked_whisper.saes.store_files import (
    DTYPES,
    FORMAT,
    MANIFEST,
    PLAN,
    StoreSettings,
    clear_unfinished,
    read_json,
    write_json,
)
from hooked_whisper.saes.store_writer import ClipRows, StoreWriter
from hooked_whisper.saes.streaming import ActivationStream, stream
from hooked_whisper.saes.survey import metadata_fingerprint

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

__all__ = ["ActivationStream", "HarvestReport", "harvest", "stream"]

logger = logging.getLogger(__name__)

SHARD_ROWS = 65_536
HINT = 300.0  # seconds without news, after which it is said what is waited for
PATIENCE = 3600.0  # seconds without news from another process, after which it is given up
_TOKENS_A_SECOND = 4.0  # of speech, roughly
# Columns that a store has of itself.
_RESERVED = ("clip", "frame", "time", "position", "window", "token", "string", "shard", "first_row", "n_rows")


@dataclass(frozen=True)
class HarvestReport:
    """How a harvest went, in this process and this run.

    Attributes:
        n_rows: rows that it wrote of each hook.
        n_clips: clips that it went through.
        n_windows: windows that the model was given.
        seconds: how long it took from the first clip to the last.
        model_seconds: how much of it the model took.
        n_skipped: clips that were left out.
    """

    n_rows: int
    n_clips: int
    n_windows: int
    seconds: float
    model_seconds: float
    n_skipped: int

    @property
    def outside(self) -> float:
        """The part of the time that was not the model's."""
        return 1 - self.model_seconds / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.n_rows:,} rows of {self.n_clips:,} clips in {self.n_windows:,} windows; {self.seconds:.1f} s, "
            f"{self.outside:.1%} of it outside the model; {self.n_skipped} clips left out"
        )


@dataclass(frozen=True)
class _Team:
    """This process among those that share a harvest."""

    rank: int
    size: int

    @classmethod
    def from_environment(cls) -> _Team:
        """As `torchrun` says: RANK of WORLD_SIZE; one of one where it does not."""
        rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
            raise ConfigError(f"RANK={rank!r} of WORLD_SIZE={size!r} cannot be: start the processes with torchrun.")
        return cls(int(rank), int(size))


def harvest(
    model: HookedWhisper,
    corpus: Corpus,
    *,
    hooks: str | Sequence[str],
    out: str | os.PathLike[str],
    dtype: StoreDType = "float16",
    batch_size: int = 16,
    packing: Packing = "none",
    window: WindowLength = "full",
    text: TextFrom = "corpus",
    prompt: bool = False,
    shard_rows: int = SHARD_ROWS,
    resume: bool = True,
    progress: bool | None = None,
) -> ActivationStore:
    """Runs the model over a corpus and stores what the hooks hold, one row for each frame or token, padding left out.

    The model is stopped after the deepest hook. Clips over 30 s are cut into consecutive windows. All hooks of a store
    have rows of one kind: frames of 20 ms (the encoder's, and cross-attention's keys and values), frames of the
    spectrogram (10 ms), or tokens. What has heads is laid side by side in a row.

    Args:
        model: its weights, and the hooks that sit on it, decide what is stored.
        corpus: the clips.
        hooks: a name, a pattern with `*`, or a list of these.
        out: the folder; `ActivationStore.open` reads it.
        dtype: of the stored activations. float16 ends at 65504, and what is beyond that is refused.
        batch_size: windows at a time.
        packing: "none" gives each clip a window of its own, padded with silence to 30 s as Whisper was trained.
            "windows" puts clips one after the other into full windows, each at a whole frame: many times faster for
            short clips, but the clips of a window see each other through attention, lie at other positions than at
            its start, and share one loudness reference (Whisper's spectrogram is clipped 80 dB below its peak).
        window: "full" is 30 s. "true_length" ends the window at the next half second after the sound: faster for short
            clips, and no frame attends to padding, which is not what Whisper was trained on: activations differ from
            those of a padded window.
        text: of decoder hooks: "corpus" feeds each clip's text, "own" the model's own greedy transcript. Clips without
            a language have theirs detected.
        prompt: whether the prompt's tokens (<|startoftranscript|>, language, task) are rows, too.
        shard_rows: rows of a shard, roughly; what a kill can cost at most.
        resume: go on with an unfinished harvest in that folder; False refuses a folder that has one.
        progress: show a bar with rate and time left; None shows it where the error output is a terminal.

    Raises:
        HookNameError, ConfigError: hooks or options that do not fit.
        CorpusError: an empty corpus, or a clip that cannot be read or has no text, unless the corpus skips those.
        StoreError: activations that are not finite; a disk that is full; a folder that holds another harvest, or this
            one with another model, corpus or option. What was complete is kept.
        MissingExtraError: pyarrow is not installed.
    """
    import_pyarrow()
    if dtype not in DTYPES:
        raise ConfigError(f"Unknown dtype {dtype!r}: expected one of {', '.join(DTYPES)}.")
    if shard_rows < 1:
        raise ConfigError(f"shard_rows must be at least 1, got {shard_rows}.")
    names = model.resolve_names([hooks] if isinstance(hooks, str) else list(hooks))
    runner = Runner(model, names, RunOptions(batch_size, packing, window, text, prompt), DTYPES[dtype])
    folder, team = Path(out), _Team.from_environment()
    has_one = (folder / MANIFEST).is_file() or (folder / PLAN).is_file()
    if has_one and not resume:
        raise StoreError(f"{folder} holds a harvest already: name another folder, or resume it with resume=True.")
    settings = _settings(runner, dtype, shard_rows)
    plan = _plan(folder, settings, corpus, runner, shard_rows, team)
    if plan is None:  # complete
        store = ActivationStore.open(folder)
        logger.info("%s is complete already.", folder)
        return store
    report = _work(plan, corpus, runner, folder, team, progress)
    writer = StoreWriter(folder, plan.settings)
    if team.rank == 0:
        for index in range(len(plan.blocks)):
            _wait(lambda index=index: writer.note(index) is not None, folder, team)
        writer.finish(len(plan.blocks))
    _wait(lambda: (folder / MANIFEST).is_file(), folder, team)
    store = ActivationStore.open(folder)
    store.report = report
    logger.info("%s", report)
    return store


# The plan


@dataclass(frozen=True)
class _Plan:
    settings: StoreSettings
    blocks: list[tuple[int, int]]
    seconds: list[float]  # of each block, roughly
    costs: list[int]  # frames that the encoder is given, roughly


def _settings(runner: Runner, dtype: str, shard_rows: int) -> StoreSettings:
    """All that decides the bytes, but for the corpus."""
    model = runner.model
    return StoreSettings(
        model=model.cfg.model_name,
        weights=weights_fingerprint(model),
        hooks=row_width(model, runner.hooks),
        dtype=dtype,
        position=runner.position,
        rate=RATES[runner.position],
        options={
            **asdict(runner.options),
            "shard_rows": shard_rows,
            "device": model.device.type,
            "model_dtype": str(model.dtype).removeprefix("torch."),
            "hooked": sorted(name for name, point in model.hook_dict.items() if point.live),
        },
    )


def _plan(
    folder: Path, settings: StoreSettings, corpus: Corpus, runner: Runner, shard_rows: int, team: _Team
) -> _Plan | None:
    """The plan of this harvest, made or found; None if the harvest is complete.

    Raises:
        StoreError: the folder holds another harvest.
    """
    if team.rank != 0:
        return _plan_of_first(folder, settings, corpus, team)
    survey = corpus.survey()
    known = corpus.describe() | {"n_clips": len(survey.ids), "fingerprint": survey.fingerprint}
    columns = {_column(name): kind for name, kind in sorted(survey.columns.items())}
    settings = replace(settings, corpus=known, columns=columns)
    if (folder / MANIFEST).is_file():
        found = StoreSettings.from_json(read_json(folder / MANIFEST)["settings"])
        _compare(folder, found, settings)
        clear_unfinished(folder)  # a kill may have come before
        return None
    per_second = _TOKENS_A_SECOND if settings.rate is None else settings.rate
    blocks = into_blocks(survey.seconds, [seconds * per_second for seconds in survey.seconds], shard_rows)
    seconds = [sum(survey.seconds[first:stop]) for first, stop in blocks]
    window, options = runner.model.cfg.n_frames, runner.options
    costs = [cost(survey.seconds[first:stop], window, options.packing, options.window) for first, stop in blocks]
    if (folder / PLAN).is_file():
        _compare(folder, StoreSettings.from_json(read_json(folder / PLAN)["settings"]), settings)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        plan = {"format": FORMAT, "settings": asdict(settings), "blocks": blocks, "seconds": seconds, "costs": costs}
        write_json(folder / PLAN, plan | {"metadata": survey.metadata})
    return _Plan(settings, blocks, seconds, costs)


def _plan_of_first(folder: Path, settings: StoreSettings, corpus: Corpus, team: _Team) -> _Plan | None:
    """The plan that the first process has made, checked as far as that goes without reading all audio again."""
    _wait(lambda: (folder / PLAN).is_file() or (folder / MANIFEST).is_file(), folder, team)
    complete = (folder / MANIFEST).is_file()
    found = read_json(folder / (MANIFEST if complete else PLAN))
    settings_found = StoreSettings.from_json(found["settings"])
    _compare(folder, settings_found, replace(settings, corpus=settings_found.corpus, columns=settings_found.columns))
    if complete:
        return None
    if found["metadata"] != metadata_fingerprint(corpus):
        raise StoreError(f"Process {team.rank} was given another corpus than the one that {folder} is planned for.")
    if "costs" not in found:
        raise StoreError(
            f"{folder} was planned by an earlier version, whose processes shared the shards otherwise: let one process "
            "go on with it, without torchrun."
        )
    blocks = [(first, stop) for first, stop in found["blocks"]]
    return _Plan(settings_found, blocks, found["seconds"], found["costs"])


def _compare(folder: Path, found: StoreSettings, wanted: StoreSettings) -> None:
    differences = found.differences(wanted)
    if differences:
        raise StoreError(
            f"{folder} holds a harvest of something else ({'; '.join(differences)}): harvest into another folder, or "
            "with what that one was begun with."
        )


def _column(name: str) -> str:
    return f"corpus_{name}" if name in _RESERVED else name


def _wait(ready: Any, folder: Path, team: _Team) -> None:
    """Waits for what other processes do, as long as there is news from them."""
    seen, since, told = -1, time.monotonic(), False
    while not ready():
        if team.size == 1:
            raise StoreError(f"{folder} lost files while it was written to: is another process working there?")
        files = sum(1 for _ in folder.glob("*")) if folder.is_dir() else 0
        if files != seen:
            seen, since = files, time.monotonic()
        elif time.monotonic() - since > HINT and not told:
            told = True
            logger.warning(
                "Process %d of %d waits for the others in %s: no news for %.0f s. If one has ended, start the same "
                "harvest again with all %d, or with one alone: what is there stays.",
                team.rank, team.size, folder, HINT, team.size,
            )  # fmt: skip
        elif time.monotonic() - since > PATIENCE:
            raise StoreError(f"No news from the other processes in {folder} for an hour: run the same harvest again.")
        time.sleep(0.05)


# The work


def _work(
    plan: _Plan, corpus: Corpus, runner: Runner, folder: Path, team: _Team, progress: bool | None
) -> HarvestReport:
    """Writes the shards that are this process's and not there yet."""
    writer = StoreWriter(folder, plan.settings)
    mine = shared_out(plan.costs, team.size)[team.rank]
    todo = [index for index in mine if writer.note(index) is None]
    per_second = plan.settings.rate or _TOKENS_A_SECOND
    bar = tqdm(
        total=round(sum(plan.seconds[index] for index in mine) * per_second),
        initial=round(sum(plan.seconds[index] for index in mine if index not in todo) * per_second),
        unit=" tokens" if plan.settings.position == "token" else " frames",
        unit_scale=True,
        desc=f"harvest {folder.name}" + (f" [{team.rank}]" if team.size > 1 else ""),
        disable=not (sys.stderr.isatty() if progress is None else progress),
    )
    began, n_rows, n_clips, n_skipped = time.perf_counter(), 0, 0, 0
    with bar, ThreadPoolExecutor(1) as pool:
        blocks = _blocks(corpus, [plan.blocks[index] for index in todo])
        # The next block's audio is read while the model works on this one.
        ahead = pool.submit(_load_next, blocks, corpus, runner)
        for index in todo:
            loaded = ahead.result()
            ahead = pool.submit(_load_next, blocks, corpus, runner)
            found = runner.run(loaded.items, loaded.waveforms, on_rows=bar.update)
            clips = [
                ClipRows(
                    item.id,
                    count,
                    item.text,
                    item.language,
                    item.speaker,
                    {_column(name): value for name, value in item.columns.items()},
                )
                for item, count in zip(loaded.items, found.n_rows, strict=True)
            ]
            writer.write_shard(
                index, found.rows, found.per_row, clips, n_windows=found.n_windows, skipped=loaded.skipped
            )
            n_rows, n_clips = n_rows + sum(found.n_rows), n_clips + len(clips)
            n_skipped += len(loaded.skipped)
    seconds = time.perf_counter() - began
    return HarvestReport(n_rows, n_clips, runner.clock.n_windows, seconds, runner.clock.model_seconds, n_skipped)


@dataclass(frozen=True)
class _Loaded:
    items: list[CorpusItem]
    waveforms: list[Tensor]
    skipped: list[dict[str, str]]


def _blocks(corpus: Corpus, ranges: Sequence[tuple[int, int]]) -> Iterator[list[CorpusItem]]:
    """The clips of each range; a corpus that streams is gone through once."""
    if not corpus.streams:
        for first, stop in ranges:
            yield [corpus[index] for index in range(first, stop)]
        return
    clips, at = iter(corpus), 0
    for first, stop in ranges:
        block = []
        while at < stop:
            item = next(clips, None)
            if item is None:
                raise CorpusError(f"{corpus.name} ended after {at} clips: it had more when the harvest was planned.")
            if at >= first:
                block.append(item)
            at += 1
        yield block


def _load_next(blocks: Iterator[list[CorpusItem]], corpus: Corpus, runner: Runner) -> _Loaded:
    """The audio of the next block; nothing after the last."""
    loaded = _Loaded([], [], [])
    for item in next(blocks, []):
        try:
            waveform = item.load()
            runner.check_clip(item, len(waveform))
        except CorpusError as error:
            corpus.skip(item, error)
            loaded.skipped.append({"id": item.id, "error": str(error)})
            continue
        loaded.items.append(item)
        loaded.waveforms.append(waveform)
    return loaded
