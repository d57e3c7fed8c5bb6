"""Streams: the rows of a harvest without a disk, shuffled, from any row on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from small import small_model
from sounds import make_corpus
from torch import Tensor

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import ConfigError, CorpusError, HookNameError, StoreError
from hooked_whisper.saes import Corpus, harvest, stream
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.harvest_run import Runner
from hooked_whisper.saes.source import ActivationSource
from hooked_whisper.speech import clips

HOOK, OTHER = "encoder.hook_out", "encoder.blocks.0.hook_resid_post"
LENGTHS = [0.05, 0.5, 0.12, 0.2, 0.01, 0.3, 0.08, 0.21, 0.15, 0.02]
N = 84


@pytest.fixture(scope="module")
def model() -> HookedWhisper:
    return small_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.from_manifest(make_corpus(tmp_path_factory.mktemp("corpus"), LENGTHS))


@pytest.fixture
def n_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many clips the model was given, each time it ran."""
    run, seen = Runner.run, []

    def counting(self: Runner, items, waveforms, **options):
        seen.append(len(items))
        return run(self, items, waveforms, **options)

    monkeypatch.setattr(Runner, "run", counting)
    return seen


def one_pass(source: ActivationSource, batch_size: int = 10, hook: str = HOOK, **options) -> Tensor:
    return torch.cat(list(source.batches(hook, batch_size, repeat=False, **options)))


def in_order(rows: Tensor) -> Tensor:
    """Rows in an order of their own, to compare two sets of them."""
    return rows[rows[:, 0].argsort()]


def test_it_is_a_source(model: HookedWhisper, corpus: Corpus) -> None:
    found = stream(model, corpus, hooks=[HOOK, OTHER])
    assert isinstance(found, ActivationSource)
    assert (found.hooks, found.model_name, found.n_rows) == ((OTHER, HOOK), "small", None)
    assert (found.width(HOOK), found.width(OTHER)) == (16, 16)
    about = found.describe()
    assert json.loads(json.dumps(about)) == about
    assert (about["source"], about["corpus"]["n_clips"], about["options"]["buffer_rows"]) == ("stream", 10, 65_536)


def test_rows_are_those_of_a_harvest(model: HookedWhisper, corpus: Corpus, tmp_path: Path) -> None:
    store = harvest(model, corpus, hooks=HOOK, out=tmp_path, dtype="float32", progress=False)
    found = stream(model, corpus, hooks=HOOK, buffer_rows=30)
    rows = one_pass(found)
    assert (rows.dtype, len(rows), found.n_rows) == (torch.float32, N, N)
    torch.testing.assert_close(in_order(rows), in_order(store.rows(HOOK)), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(rows, store.rows(HOOK))


def test_passes_differ_and_go_on_without_a_gap(model: HookedWhisper, corpus: Corpus) -> None:
    rows = torch.cat(list(islice(stream(model, corpus, hooks=HOOK, buffer_rows=30).batches(HOOK, 21), 8)))
    first, second = rows[:N], rows[N:]
    torch.testing.assert_close(in_order(first), in_order(second), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(first, second)


def test_order_is_the_seeds_alone(model: HookedWhisper, corpus: Corpus) -> None:
    source = stream(model, corpus, hooks=HOOK, buffer_rows=30)
    again = stream(model, corpus, hooks=HOOK, buffer_rows=30)
    assert torch.equal(one_pass(source), one_pass(again, batch_size=84))
    assert not torch.equal(one_pass(source, seed=1), one_pass(source))


@pytest.mark.parametrize("start", [0, 1, 29, 60, 83, 84, 90, 3 * N + 5])
def test_going_on_from_any_row(model: HookedWhisper, corpus: Corpus, start: int) -> None:
    whole = torch.cat(list(islice(stream(model, corpus, hooks=HOOK, buffer_rows=30).batches(HOOK, N), 5)))
    source = stream(model, corpus, hooks=HOOK, buffer_rows=30)
    for _ in range(2):  # the second time, all lengths are known
        found = torch.cat(list(islice(source.batches(HOOK, 7, start=start), 3)))
        assert torch.equal(found, whole[start : start + 21])


def test_what_is_skipped_is_not_run(model: HookedWhisper, corpus: Corpus, n_runs: list[int]) -> None:
    source = stream(model, corpus, hooks=HOOK, buffer_rows=30)
    next(source.batches(HOOK, 5, start=5 * N + 70))
    assert len(n_runs) == 1


def test_several_hooks_at_once(model: HookedWhisper, corpus: Corpus, n_runs: list[int]) -> None:
    source = stream(model, corpus, hooks=[HOOK, OTHER], buffer_rows=30)
    found = list(source.joint_batches([HOOK, OTHER], 20, repeat=False))
    runs = len(n_runs)
    assert [len(batch[HOOK]) for batch in found] == [20, 20, 20, 20, 4]
    for hook in (HOOK, OTHER):
        assert torch.equal(torch.cat([batch[hook] for batch in found]), one_pass(source, hook=hook))
    assert len(n_runs) == 3 * runs


def test_packing(model: HookedWhisper, corpus: Corpus, tmp_path: Path) -> None:
    rows = one_pass(stream(model, corpus, hooks=HOOK, packing="windows", batch_size=3))
    assert len(rows) == N
    assert not torch.allclose(in_order(rows), in_order(one_pass(stream(model, corpus, hooks=HOOK))), atol=1e-2)


def test_a_corpus_that_streams(model: HookedWhisper, corpus: Corpus) -> None:
    items = list(corpus)
    streaming = Corpus(lambda: iter(items))
    rows = one_pass(stream(model, streaming, hooks=HOOK, buffer_rows=30))
    listed = one_pass(stream(model, corpus, hooks=HOOK))
    torch.testing.assert_close(in_order(rows), in_order(listed), rtol=1e-4, atol=1e-5)
    tail = one_pass(stream(model, streaming, hooks=HOOK, buffer_rows=30), start=50)
    assert torch.equal(tail, rows[50:])


def test_tokens_are_skipped_without_the_model_if_the_text_is_known(
    whisper_base: HookedWhisper, n_runs: list[int]
) -> None:
    corpus = Corpus.from_clips([clips("en", key=key)[0] for key in ("vm-sorry", "tt-weasels")])
    source = stream(whisper_base, corpus, hooks="decoder.hook_embed", window="true_length", buffer_rows=1)
    n_tokens = [len(whisper_base.to_tokens(item.text)) for item in corpus]
    rows = one_pass(source, hook="decoder.hook_embed", start=sum(n_tokens) - 1)
    assert n_runs == [1]  # the second of the two clips alone
    assert (len(rows), source.n_rows) == (1, sum(n_tokens))


def test_broken_clips(model: HookedWhisper, tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path, [0.1, 0.1])
    (tmp_path / "clip-000.wav").write_bytes(b"RIFF")
    with pytest.raises(CorpusError, match=r"Clip 'clip-000.wav'"):
        one_pass(stream(model, Corpus.from_manifest(manifest), hooks=HOOK))
    corpus = Corpus.from_manifest(manifest, on_error="skip")
    assert len(one_pass(stream(model, corpus, hooks=HOOK))) == 5
    assert [skipped.id for skipped in corpus.skipped] == ["clip-000.wav"]
    (tmp_path / "clip-001.wav").write_bytes(b"RIFF")
    with pytest.raises(CorpusError, match="gave no rows: all its clips were left out"):
        one_pass(stream(model, Corpus.from_manifest(manifest, on_error="skip"), hooks=HOOK))


def test_activations_that_are_not_finite(corpus: Corpus) -> None:
    broken = small_model(dtype=torch.float32)
    broken.add_hook(HOOK, lambda value, hook: value * float("inf"))
    with pytest.raises(StoreError, match=rf"{HOOK} has .* rows that are not finite"):
        one_pass(stream(broken, corpus, hooks=HOOK))


def test_what_does_not_fit(model: HookedWhisper, corpus: Corpus) -> None:
    with pytest.raises(HookNameError, match="Did you mean 'encoder.hook_out'"):
        stream(model, corpus, hooks="encoder.hook_ot")
    with pytest.raises(ConfigError, match="buffer_rows must be at least 1, got 0"):
        stream(model, corpus, hooks=HOOK, buffer_rows=0)
    source = stream(model, corpus, hooks=HOOK)
    with pytest.raises(StoreError, match=f"This stream has no activations of '{OTHER}': it has {HOOK}"):
        next(source.batches(OTHER, 1))
    with pytest.raises(StoreError, match="batch_size=0, start=0 cannot be"):
        next(source.batches(HOOK, 0))


def test_an_empty_stream(model: HookedWhisper) -> None:
    def begin() -> Iterator[CorpusItem]:
        return iter(())

    with pytest.raises(CorpusError, match="corpus gave no rows"):
        next(stream(model, Corpus(begin), hooks=HOOK).batches(HOOK, 1))
