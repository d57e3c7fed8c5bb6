"""Reading stores: rows, batches, tables, parts, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from small_store import HOOK, OTHER, SETTINGS, make_store, values, with_dtype
from torch import Tensor

from hooked_whisper.errors import ConfigError, StoreError
from hooked_whisper.saes import ActivationStore, Corpus
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.source import ActivationSource
from hooked_whisper.saes.store_files import DTYPES

SHARDS = [[3, 5, 4], [], [7], [2, 2, 9, 1]]
N = 33


@pytest.fixture
def store(tmp_path: Path) -> ActivationStore:
    return make_store(tmp_path / "acts", SHARDS)


def numbers(rows: Tensor) -> list[int]:
    """Which rows these are."""
    return rows[:, 0].int().tolist()


def test_what_it_is(store: ActivationStore) -> None:
    assert isinstance(store, ActivationSource)
    assert (store.hooks, store.model_name, store.n_rows, len(store)) == ((OTHER, HOOK), "small", N, N)
    assert (store.width(HOOK), store.width(OTHER), store.dtype) == (3, 2, torch.float32)
    assert store.skipped == []
    assert repr(store) == f"ActivationStore(33 rows of {OTHER}, {HOOK} of small)"
    about = store.describe()
    assert json.loads(json.dumps(about)) == about
    assert (about["source"], about["n_rows"], about["n_clips"], about["licences"]) == ("store", N, 8, ["CC0"])
    assert about["corpus"]["fingerprint"] == "f" * 64


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_what_was_written_and_mapped(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, SHARDS, with_dtype(dtype))
    assert torch.equal(store.rows(HOOK), values(0, N, 3, dtype))
    assert torch.equal(store.rows(OTHER, 5, 30), values(5, 25, 2, dtype))
    assert store.rows(HOOK, 4, 4).shape == (0, 3)
    inside = store.rows(HOOK, 13, 19)  # one shard: no copy
    assert inside.untyped_storage().data_ptr() == store.rows(HOOK, 12, 13).untyped_storage().data_ptr()
    inside.zero_()
    assert torch.equal(ActivationStore.open(tmp_path).rows(HOOK), values(0, N, 3, dtype))


def test_rows_that_do_not_exist(store: ActivationStore) -> None:
    with pytest.raises(StoreError, match="Rows 30 to 34 do not exist: this store has 33, counted from 0"):
        store.rows(HOOK, 30, 34)
    with pytest.raises(StoreError, match=f"no activations of 'encoder.hook_ot': it has .* Did you mean '{HOOK}'"):
        store.rows("encoder.hook_ot")
    with pytest.raises(StoreError, match="no activations of 'x'"):
        store.width("x")


def test_in_order(store: ActivationStore) -> None:
    found = list(store.ordered_batches(HOOK, 10, start=1))
    assert [len(batch) for batch in found] == [10, 10, 10, 2]
    assert numbers(torch.cat(found)) == list(range(1, N))
    assert found[0].dtype == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_pass_has_every_row_once(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, SHARDS, with_dtype(dtype))
    found = list(store.batches(HOOK, 10, repeat=False))
    assert [len(batch) for batch in found] == [10, 10, 10, 3]
    assert {batch.dtype for batch in found} == {torch.float32}
    order = numbers(torch.cat(found))
    assert sorted(order) == list(range(N))
    assert order != sorted(order)
    assert torch.equal(torch.cat(found), values(0, N, 3)[order])


@pytest.mark.parametrize("dtype", DTYPES)
def test_batches_as_they_are_stored(tmp_path: Path, dtype: str) -> None:
    store = make_store(tmp_path, SHARDS, with_dtype(dtype))
    as_stored = torch.cat(list(store.batches(HOOK, 10, repeat=False, dtype=store.dtype)))
    assert as_stored.dtype == store.dtype
    assert torch.equal(as_stored.float(), torch.cat(list(store.batches(HOOK, 10, repeat=False))))


def test_passes_go_on_without_a_gap(store: ActivationStore) -> None:
    order = numbers(torch.cat(list(islice(store.batches(HOOK, 10), 10))))
    assert len(order) == 100
    passes = [order[first : first + N] for first in (0, N, 2 * N)]
    assert all(sorted(found) == list(range(N)) for found in passes)
    assert passes[0] != passes[1] != passes[2]


def test_order_is_the_seeds_alone(store: ActivationStore) -> None:
    def order(seed: int, hook: str = HOOK, batch_size: int = 7) -> list[int]:
        return numbers(torch.cat(list(store.batches(hook, batch_size, seed=seed, repeat=False))))

    assert order(0) == order(0) == order(0, OTHER) == order(0, batch_size=33)
    assert order(0) != order(1)


@pytest.mark.parametrize("start", [0, 1, 10, 32, 33, 34, 70, 99])
def test_going_on_from_any_row(store: ActivationStore, start: int) -> None:
    whole = numbers(torch.cat(list(islice(store.batches(HOOK, 12, seed=3), 20))))
    found = torch.cat(list(islice(store.batches(HOOK, 5, seed=3, start=start), 10)))
    assert numbers(found) == whole[start : start + 50]


def test_one_pass_from_a_row_on(store: ActivationStore) -> None:
    whole = numbers(torch.cat(list(store.batches(HOOK, 8, repeat=False))))
    assert numbers(torch.cat(list(store.batches(HOOK, 8, start=20, repeat=False)))) == whole[20:]
    assert list(store.batches(HOOK, 8, start=N, repeat=False)) == []


def test_several_hooks_at_once(store: ActivationStore) -> None:
    for batch in store.joint_batches([HOOK, OTHER], 8, repeat=False):
        assert numbers(batch[HOOK]) == numbers(batch[OTHER])
        assert (batch[HOOK].shape[1], batch[OTHER].shape[1]) == (3, 2)


def test_batches_do_not_share_memory(store: ActivationStore) -> None:
    first, second = islice(store.batches(HOOK, 4), 2)
    first.zero_()
    assert second.abs().sum() > 0
    assert torch.equal(store.rows(HOOK), values(0, N, 3))


def test_batches_that_cannot_be(store: ActivationStore) -> None:
    with pytest.raises(StoreError, match=r"batch_size=0, start=0 cannot be"):
        next(store.batches(HOOK, 0))
    with pytest.raises(StoreError, match=r"batch_size=1, start=-1 cannot be"):
        next(store.batches(HOOK, 1, start=-1))
    with pytest.raises(StoreError, match="no activations of 'x'"):
        next(store.batches("x", 1))


def test_mean(store: ActivationStore) -> None:
    assert torch.equal(store.mean(HOOK), torch.tensor([16.0, -16.0, 16.0]))
    part = store.where(n=[0, 7])
    assert torch.equal(part.mean(OTHER), torch.tensor([(0 + 1 + 2 + 32) / 4, -(0 + 1 + 2 + 32) / 4]))


def test_tables(store: ActivationStore) -> None:
    clips = store.clips.to_pylist()
    assert [clip["n_rows"] for clip in clips] == [3, 5, 4, 7, 2, 2, 9, 1]
    assert [clip["first_row"] for clip in clips] == [0, 3, 8, 12, 19, 21, 23, 32]
    assert clips[3] == {
        "clip": "clip-3", "shard": 2, "first_row": 12, "n_rows": 7, "text": "text 3", "language": "en",
        "speaker": "someone", "key": "b", "n": 3,
    }  # fmt: skip
    frames = store.frames.to_pylist()
    assert len(frames) == N
    assert frames[13] == {
        "clip": "clip-3", "frame": 1, "time": pytest.approx(0.02), "language": "en", "speaker": "someone", "key": "b",
        "n": 3,
    }  # fmt: skip
    for row, entry in enumerate(frames):
        assert clips[entry["n"]]["first_row"] + entry["frame"] == row


def test_rows_of_a_clip(store: ActivationStore) -> None:
    assert numbers(store.clip_rows(HOOK, "clip-4")) == [19, 20]
    assert numbers(store.where(language=None).clip_rows(HOOK, "clip-5")) == [21, 22]
    with pytest.raises(StoreError, match="No clip is called 'clip-9' here. Did you mean 'clip-"):
        store.clip_rows(HOOK, "clip-9")


def test_where(store: ActivationStore) -> None:
    french = store.where(language="fr")
    rows = [*range(3, 8), 19, 20, 32]
    assert french.n_rows == len(rows)
    assert numbers(french.rows(HOOK)) == rows
    assert numbers(french.rows(HOOK, 4, 7)) == [7, 19, 20]
    assert sorted(numbers(torch.cat(list(french.batches(HOOK, 3, repeat=False))))) == rows
    assert french.frames["language"].to_pylist() == ["fr"] * 8
    assert french.clips["first_row"].to_pylist() == [0, 5, 7]
    assert numbers(french.where(key="b").rows(HOOK)) == [*range(3, 8), 32]
    assert french.where(n=lambda n: n > 4).n_rows == 1
    assert french.describe()["part"] == ["where(language='fr')"]
    # A run that is gone on with in another process has other functions that choose the same.
    (many,), (again,), (few,) = (
        store.where(n=test).describe()["part"] for test in (lambda n: n > 4, lambda n: n >= 5, lambda n: n > 5)
    )
    assert many == again != few and "0x" not in many and many.startswith("where(n=a function): ")
    with pytest.raises(StoreError, match=r"no clip in where\(language='de'\)"):
        store.where(language="de")
    with pytest.raises(StoreError, match=r"no column 'lang': it has clip, .* n\. Did you mean 'language'|it has clip"):
        store.where(lang="fr")
    with pytest.raises(ConfigError, match="needs at least one column"):
        store.where()


def test_split(store: ActivationStore) -> None:
    rest, held_out = store.split(0.3, seed=1, by="clip")
    both = [numbers(part.rows(HOOK)) for part in (rest, held_out)]
    assert sorted(both[0] + both[1]) == list(range(N))
    assert held_out.clips.num_rows == 3
    assert "held-out part of split(held_out=0.3, seed=1, by='clip')" in repr(held_out)
    by_key = store.split(0.5, by="key")
    assert [set(part.clips["key"].to_pylist()) for part in by_key] in ([{"a"}, {"b"}], [{"b"}, {"a"}])
    assert (
        numbers(torch.cat(list(rest.batches(HOOK, 4, start=9, repeat=False))))
        == (numbers(torch.cat(list(rest.batches(HOOK, 40, repeat=False))))[9:])
    )
    with pytest.raises(StoreError, match="cannot be split by 'speaker': all its clips are of one group, 'someone'"):
        store.split(by="speaker")
    with pytest.raises(ConfigError, match="held_out must be a part between 0 and 1, got 0"):
        store.split(0)


@pytest.mark.parametrize("by", ["clip", "key", "language"])
def test_split_is_the_corpuss(store: ActivationStore, by: str) -> None:
    clips = store.clips.to_pylist()
    corpus = Corpus([CorpusItem(c["clip"], "", language=c["language"], columns={"key": c["key"]}) for c in clips])
    for seed in range(5):
        sides = corpus.split(0.4, seed=seed, by="id" if by == "clip" else by)
        for part, side in zip(store.split(0.4, seed=seed, by=by), sides, strict=True):
            assert part.clips["clip"].to_pylist() == [item.id for item in side]


def test_join(store: ActivationStore, tmp_path: Path) -> None:
    more = make_store(tmp_path / "more", [[4], [2, 3]])
    both = ActivationStore.join([store.where(language="en"), more.where(n=[0, 2])])
    english = [0, 1, 2, *range(12, 19), *range(23, 32)]
    rows = [*english, 0, 1, 2, 3, 6, 7, 8]
    assert numbers(both.rows(HOOK)) == rows
    assert sorted(numbers(torch.cat(list(both.batches(OTHER, 5, repeat=False))))) == sorted(rows)
    assert both.clips["first_row"].to_pylist() == [0, 3, 10, 19, 23]
    assert both.frames.num_rows == len(rows)
    assert len(both.describe()["corpus"]) == 2
    mean = sum(rows) / len(rows)
    torch.testing.assert_close(both.mean(HOOK), torch.tensor([mean, -mean, mean]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "large"}, "model is 'small' in one and 'large' in another"),
        ({"weights": "1" * 64}, "weights is '0000.* in one and '1111"),
        ({"hooks": {HOOK: 3}}, "hooks is .* in one and"),
        ({"dtype": "float16"}, "dtype is 'float32' in one and 'float16' in another"),
    ],
)
def test_stores_that_do_not_belong_together(store: ActivationStore, tmp_path: Path, change: dict, message: str) -> None:
    other = make_store(tmp_path / "other", [[2]], replace(SETTINGS, **change))
    with pytest.raises(StoreError, match=f"These stores do not belong together: {message}"):
        ActivationStore.join([store, other])
    with pytest.raises(StoreError, match="No stores to join"):
        ActivationStore.join([])


def test_verify_finds_a_changed_byte(store: ActivationStore) -> None:
    folder = store.manifests[0].folder
    store.verify()
    for name in ("00000.safetensors", "00003.parquet"):
        content = bytearray((folder / name).read_bytes())
        content[-5] ^= 1
        (folder / name).write_bytes(content)
    with pytest.raises(StoreError, match=r"2 files are not what was harvested \(SHA-256 differs\): .*0.safetensors, "):
        ActivationStore.open(folder).verify()


def test_damaged_tables_are_named(store: ActivationStore) -> None:
    folder = store.manifests[0].folder
    for name in ("00002.parquet", "clips.parquet"):
        (folder / name).write_bytes(b"x" * (folder / name).stat().st_size)
    damaged = ActivationStore.open(folder)
    with pytest.raises(StoreError, match=r"00002.parquet is damaged"):
        _ = damaged.frames
    with pytest.raises(StoreError, match=r"clips.parquet is damaged"):
        _ = damaged.clips
    (folder / "00002.safetensors").unlink()
    with pytest.raises(StoreError, match=r"00002.safetensors cannot be read"):
        damaged.rows(HOOK)
