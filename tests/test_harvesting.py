"""Harvests: the same bytes however they were interrupted or shared, and nothing lost when something goes wrong."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_model
from sounds import make_corpus, write_wav

from hooked_whisper import HookedWhisper
from hooked_whisper.errors import ConfigError, CorpusError, HookNameError, MissingExtraError, StoreError
from hooked_whisper.saes import ActivationStore, Corpus, harvest, harvesting, store_files, store_writer
from hooked_whisper.saes.corpus_item import CorpusItem
from hooked_whisper.saes.fingerprints import weights_fingerprint
from hooked_whisper.speech import clips

HOOKS = ["encoder.blocks.0.hook_resid_post", "encoder.hook_out"]
LENGTHS = [0.05, 0.5, 0.12, 0.2, 0.01, 0.3, 0.08, 0.21, 0.15, 0.02]  # a window of the small model is 0.2 s
N_ROWS = [3, 25, 6, 10, 1, 15, 4, 11, 8, 1]
OPTIONS: dict[str, Any] = {"hooks": HOOKS, "shard_rows": 25, "batch_size": 2, "packing": "windows", "progress": False}


@pytest.fixture(scope="module")
def model() -> HookedWhisper:
    return small_model(dtype=torch.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    languages = ["en", "fr"] * 5
    return make_corpus(tmp_path_factory.mktemp("corpus"), LENGTHS, language=languages, text=list("abcdefghij"))


@pytest.fixture(scope="module")
def whole(model: HookedWhisper, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed harvest."""
    out = tmp_path_factory.mktemp("harvest") / "whole"
    harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    return out


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


# What is written


def test_a_store_comes_out(model: HookedWhisper, manifest: Path, tmp_path: Path) -> None:
    corpus = Corpus.from_manifest(manifest)
    store = harvest(model, corpus, out=tmp_path / "acts", **OPTIONS)
    store.verify()
    assert (store.hooks, store.dtype, store.n_rows) == (tuple(HOOKS), torch.float16, sum(N_ROWS))
    assert store.clips["n_rows"].to_pylist() == N_ROWS
    assert store.clips["clip"].to_pylist() == [item.id for item in corpus]
    assert store.where(language="fr").clips["text"].to_pylist() == list("bdfhj")
    frames = store.frames
    assert frames.column_names == ["clip", "frame", "time", "position", "window", "language", "speaker"]
    assert frames["frame"].to_pylist() == [i for n in N_ROWS for i in range(n)]
    about = store.describe()
    assert about["weights_sha256"] == weights_fingerprint(model)
    assert about["corpus"]["fingerprint"] == corpus.fingerprint()
    assert (about["position"], about["rate"], about["options"]["packing"]) == ("frame", 50.0, "windows")
    report = store.report
    assert (report.n_rows, report.n_clips, report.n_skipped) == (sum(N_ROWS), 10, 0)
    assert report.n_windows == store.manifests[0].n_windows < 14
    assert "84 rows of 10 clips in" in str(report)
    assert 0 < report.outside < 1


def test_values_in_every_dtype(model: HookedWhisper, manifest: Path, tmp_path: Path) -> None:
    corpus = Corpus.from_manifest(manifest)
    exact = harvest(model, corpus, out=tmp_path / "float32", **OPTIONS | {"dtype": "float32", "packing": "none"})
    expected = []
    for item in corpus:
        for piece in item.load().split(3_200):
            frames = model.encode(piece)[0]
            expected.append(frames[: -(-len(piece) // 320)])
    torch.testing.assert_close(exact.rows(HOOKS[1]), torch.cat(expected), rtol=1e-4, atol=1e-5)
    for dtype, tolerance in (("float16", 1e-3), ("bfloat16", 1e-2)):
        store = harvest(model, corpus, out=tmp_path / dtype, **OPTIONS | {"dtype": dtype, "packing": "none"})
        assert store.dtype == getattr(torch, dtype)
        assert torch.equal(store.rows(HOOKS[0]), exact.rows(HOOKS[0]).to(store.dtype))
        torch.testing.assert_close(store.rows(HOOKS[1]).float(), exact.rows(HOOKS[1]), rtol=tolerance, atol=tolerance)


def test_patterns_of_names(model: HookedWhisper, manifest: Path, tmp_path: Path) -> None:
    corpus = Corpus.from_manifest(manifest).where(text=["a", "c"])
    store = harvest(model, corpus, out=tmp_path, **OPTIONS | {"hooks": "encoder.*.hook_resid_post"})
    assert store.hooks == tuple(f"encoder.blocks.{i}.hook_resid_post" for i in range(2))


def test_real_speech_packed(whisper_base: HookedWhisper, tmp_path: Path) -> None:
    chosen = clips("en")
    corpus = Corpus.from_clips(chosen)
    store = harvest(whisper_base, corpus, hooks="encoder.hook_out", out=tmp_path, packing="windows", progress=False)
    report = store.report
    print(f"packed: {report}")
    assert store.manifests[0].n_windows * 4 <= len(chosen)
    assert store.n_rows == sum(-(-len(clip.load()) // 320) for clip in chosen)
    assert report.outside <= 0.2  # 0.02 on the parallel prompts; here there are three windows, and others' noise
    assert store.rows("encoder.hook_out").float().std() > 0.1


def test_data_sets_and_streams_give_the_same_rows(
    model: HookedWhisper, manifest: Path, whole: Path, tmp_path: Path
) -> None:
    items = list(Corpus.from_manifest(manifest))
    corpus = Corpus(lambda: iter(items), name="manifest.jsonl")
    store = harvest(model, corpus, out=tmp_path, **OPTIONS)
    assert torch.equal(store.rows(HOOKS[1]), ActivationStore.open(whole).rows(HOOKS[1]))


def test_columns_that_a_store_has_itself(model: HookedWhisper, tmp_path: Path) -> None:
    manifest = make_corpus(tmp_path / "in", [0.1, 0.1], frame=[7, 8], time=["then", None])
    store = harvest(model, Corpus.from_manifest(manifest), out=tmp_path / "out", **OPTIONS)
    assert store.clips["corpus_frame"].to_pylist() == [7, 8]
    assert store.where(corpus_time="then").n_rows == 5
    assert store.frames["frame"].to_pylist() == [*range(5), *range(5)]


def test_a_complete_harvest_is_opened(model: HookedWhisper, manifest: Path, whole: Path) -> None:
    before = content(whole)
    store = harvest(model, Corpus.from_manifest(manifest), out=whole, **OPTIONS)
    assert store.report is None
    assert content(whole) == before


def test_progress_tells_rows_and_time_left(
    model: HookedWhisper, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harvest(model, Corpus.from_manifest(manifest), out=tmp_path / "a", **OPTIONS | {"progress": True})
    shown = capsys.readouterr().err
    assert "harvest a" in shown
    assert "frames/s]" in shown
    harvest(model, Corpus.from_manifest(manifest), out=tmp_path / "b", **OPTIONS)
    assert capsys.readouterr().err == ""


# Interrupted


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the library catches it."""


def test_stopped_at_every_step_and_gone_on(
    model: HookedWhisper, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file that is written is a moment to die: half written, written, or renamed."""
    corpus = Corpus.from_manifest(manifest).where(text=["a", "b"])
    harvest(model, corpus, out=tmp_path / "undisturbed", **OPTIONS)
    write, steps = store_files.write_file, [0, 0]

    def dying(path: Path, write_content: Callable[[Path], None]) -> dict[str, Any]:
        steps[0] += 1
        if steps[0] != steps[1]:
            return write(path, write_content)
        if steps[1] % 2:
            path.with_name(f"{path.name}.1.partial").write_bytes(b"half")
        else:
            write(path, write_content)
        raise Killed

    for module in (store_files, store_writer):
        monkeypatch.setattr(module, "write_file", dying)
    n_steps = 0
    while True:
        steps[:] = [0, n_steps + 1]
        out = tmp_path / str(n_steps)
        try:
            harvest(model, corpus, out=out, **OPTIONS)
            break
        except Killed:
            pass
        n_steps += 1
        assert not (out / "store.json").is_file() or steps[1] % 2 == 0
        steps[:] = [0, 0]
        harvest(model, corpus, out=out, **OPTIONS)
        assert content(out) == content(tmp_path / "undisturbed")
    assert n_steps == 1 + 2 * 3 + 2  # plan, two shards of three files, table of clips, manifest


def test_a_complete_shard_is_not_made_again(
    model: HookedWhisper, manifest: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = store_writer.StoreWriter.write_shard
    written: list[int] = []

    def counting(self: store_writer.StoreWriter, index: int, *args: Any, **options: Any) -> None:
        if len(written) == 2:
            raise Killed
        write_shard(self, index, *args, **options)
        written.append(index)

    monkeypatch.setattr(store_writer.StoreWriter, "write_shard", counting)
    with pytest.raises(Killed):
        harvest(model, Corpus.from_manifest(manifest), out=tmp_path / "acts", **OPTIONS)
    with pytest.raises(StoreError, match=r"not complete \(2 of 5 shards\): run the same harvest again"):
        ActivationStore.open(tmp_path / "acts")
    written.clear()
    (tmp_path / "acts" / "00000.safetensors").write_bytes(b"cut off")  # is made again: its size gives it away
    with pytest.raises(Killed):
        harvest(model, Corpus.from_manifest(manifest), out=tmp_path / "acts", **OPTIONS)
    assert written == [0, 2]
    written.clear()
    harvest(model, Corpus.from_manifest(manifest), out=tmp_path / "acts", **OPTIONS)
    assert written == [3, 4]
    assert content(tmp_path / "acts") == content(whole)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
def test_killed_and_shared_harvests_give_the_same_bytes(root: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kill_harvest", "--kills", "3"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same bytes") == 5


# Shared


def test_two_processes_take_turns(
    model: HookedWhisper,
    manifest: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What each process does for itself, without starting two: the other one's files are put there before."""
    out = tmp_path / "acts"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(harvesting, "PATIENCE", 0.3)
    monkeypatch.setattr(harvesting, "HINT", 0.01)
    with pytest.raises(StoreError, match="No news from the other processes in .* for an hour: run the same"):
        harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    assert caplog.text.count("Process 0 of 2 waits for the others") == 1
    assert sum((out / f"0000{i}.json").is_file() for i in range(5)) in (2, 3)  # its share, by windows
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(StoreError, match="No news from the other processes"):
        harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    assert all((out / f"0000{i}.json").is_file() for i in range(5))
    monkeypatch.setenv("RANK", "0")
    harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    assert content(out) == content(whole)
    monkeypatch.setenv("RANK", "1")
    assert harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS).n_rows == sum(N_ROWS)


def test_a_plan_of_an_earlier_version(
    model: HookedWhisper, manifest: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It did not say what shards cost: several processes could not share them, one goes on."""
    out = tmp_path / "acts"
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(harvesting, "PATIENCE", 0.2)
    with pytest.raises(StoreError, match="No news"):
        harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    (out / "plan.json").write_text(json.dumps({k: v for k, v in plan.items() if k != "costs"}), encoding="utf-8")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(StoreError, match="planned by an earlier version.*let one process"):
        harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    assert content(out) == content(whole)


def test_processes_that_disagree(
    model: HookedWhisper, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(harvesting, "PATIENCE", 0.1)
    with pytest.raises(StoreError, match="No news"):
        harvest(model, Corpus.from_manifest(manifest), out=tmp_path, **OPTIONS)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(StoreError, match="Process 1 was given another corpus than the one that .* is planned for"):
        harvest(model, Corpus.from_manifest(manifest).where(language="en"), out=tmp_path, **OPTIONS)
    with pytest.raises(StoreError, match=r"something else \(dtype: 'float16', now 'float32'\)"):
        harvest(model, Corpus.from_manifest(manifest), out=tmp_path, **OPTIONS | {"dtype": "float32"})
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ConfigError, match=r"RANK='2' of WORLD_SIZE='2' cannot be: start the processes with torchrun"):
        harvest(model, Corpus.from_manifest(manifest), out=tmp_path, **OPTIONS)


# Changed


@pytest.fixture
def unfinished(model: HookedWhisper, manifest: Path, whole: Path, tmp_path: Path) -> Path:
    """The undisturbed harvest without its end."""
    out = tmp_path / "unfinished"
    monkey = pytest.MonkeyPatch()
    monkey.setattr(store_writer.StoreWriter, "finish", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS)
    monkey.undo()
    return out


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hooks": HOOKS[1:]}, r"hooks.encoder.blocks.0.hook_resid_post: 16, now None"),
        ({"dtype": "bfloat16"}, r"dtype: 'float16', now 'bfloat16'"),
        ({"packing": "none"}, r"options.packing: 'windows', now 'none'"),
        ({"window": "true_length"}, r"options.window: 'full', now 'true_length'"),
        ({"batch_size": 3}, r"options.batch_size: 2, now 3"),
        ({"shard_rows": 26}, r"options.shard_rows: 25, now 26"),
    ],
)
def test_changed_options(
    model: HookedWhisper, manifest: Path, whole: Path, unfinished: Path, complete: bool, options: dict, said: str
) -> None:
    out = whole if complete else unfinished
    before = content(out)
    with pytest.raises(StoreError, match=rf"holds a harvest of something else \({said}\): harvest into another folder"):
        harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS | options)
    assert content(out) == before


def test_a_changed_model(manifest: Path, unfinished: Path, whole: Path) -> None:
    other = small_model(dtype=torch.float32)
    with torch.no_grad():
        other.encoder.blocks[1].mlp.fc_in.weight[3, 4] += 1e-6
    with pytest.raises(StoreError, match=r"something else \(weights: '.*', now '.*'\)"):
        harvest(other, Corpus.from_manifest(manifest), out=unfinished, **OPTIONS)
    other = small_model(dtype=torch.float32)
    other.add_hook("encoder.blocks.0.hook_mlp_out", lambda value, hook: value * 0)
    with pytest.raises(StoreError, match=r"options.hooked: \[\], now \['encoder.blocks.0.hook_mlp_out'\]"):
        harvest(other, Corpus.from_manifest(manifest), out=unfinished, **OPTIONS)
    harvest(small_model(dtype=torch.float32), Corpus.from_manifest(manifest), out=unfinished, **OPTIONS)
    assert content(unfinished) == content(whole)


def test_a_changed_corpus(model: HookedWhisper, manifest: Path, unfinished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(manifest.parent, copy)
    write_wav(copy / "clip-003.wav", LENGTHS[3], seed=77)  # other samples, as many
    with pytest.raises(StoreError, match=r"something else \(corpus.fingerprint: '.*', now '.*'\)"):
        harvest(model, Corpus.from_manifest(copy / manifest.name), out=unfinished, **OPTIONS)


def test_no_resuming(model: HookedWhisper, manifest: Path, unfinished: Path, whole: Path, tmp_path: Path) -> None:
    for out in (unfinished, whole):
        with pytest.raises(StoreError, match="holds a harvest already: name another folder, or resume it"):
            harvest(model, Corpus.from_manifest(manifest), out=out, **OPTIONS | {"resume": False})
    harvest(model, Corpus.from_manifest(manifest), out=tmp_path / "new", **OPTIONS | {"resume": False})
    assert content(tmp_path / "new") == content(whole)


# Gone wrong


def test_activations_that_are_not_finite(model: HookedWhisper, manifest: Path, whole: Path, tmp_path: Path) -> None:
    broken = small_model(dtype=torch.float32)
    point = broken.hook_dict[HOOKS[1]]
    calls: list[int] = []

    def spoil(value: torch.Tensor, hook: Any) -> torch.Tensor:
        calls.append(1)
        return value * float("nan") if len(calls) > 5 else value

    refused = pytest.raises(StoreError, match=rf"{HOOKS[1]} has .* rows that are not finite, the first \(NaN\)")
    with broken.hooks(fwd_hooks=[(point.name, spoil)]), refused:
        harvest(broken, Corpus.from_manifest(manifest), out=tmp_path, **OPTIONS)
    complete = [path.name for path in sorted(tmp_path.glob("*.json"))]
    assert complete == ["00000.json", "00001.json", "00002.json", "plan.json"]  # and they stay
    assert not (tmp_path / "00003.safetensors").exists()


def test_a_disk_that_is_full(
    model: HookedWhisper, manifest: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = store_writer.save_file, [0]

    def full(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == 3:
            raise OSError(28, "No space left on device")
        save(*args)

    monkeypatch.setattr(store_writer, "save_file", full)
    with pytest.raises(StoreError, match=r"00002.safetensors cannot be written \(No space left on device\)"):
        harvest(model, Corpus.from_manifest(manifest), out=tmp_path, **OPTIONS)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["00000.json", "00001.json", "plan.json"]
    assert not list(tmp_path.glob("*.partial"))
    harvest(model, Corpus.from_manifest(manifest), out=tmp_path, **OPTIONS)
    assert content(tmp_path) == content(whole)


def test_broken_files(model: HookedWhisper, manifest: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.copytree(manifest.parent, tmp_path / "in")
    (tmp_path / "in" / "clip-001.wav").write_bytes(b"RIFF")
    broken = tmp_path / "in" / manifest.name
    with pytest.raises(CorpusError, match=r"Clip 'clip-001.wav': .* cannot be decoded"):
        harvest(model, Corpus.from_manifest(broken), out=tmp_path / "acts", **OPTIONS)
    assert not (tmp_path / "acts").exists()  # found before the model ran
    corpus = Corpus.from_manifest(broken, on_error="skip")
    with caplog.at_level(logging.WARNING):
        store = harvest(model, corpus, out=tmp_path / "acts", **OPTIONS)
    assert store.clips["n_rows"].to_pylist() == [n for i, n in enumerate(N_ROWS) if i != 1]
    assert [entry["id"] for entry in store.skipped] == ["clip-001.wav"] == [skipped.id for skipped in corpus.skipped]
    assert [record.levelname for record in caplog.records if "clip-001.wav" in record.getMessage()] == ["WARNING"]
    assert store.report.n_skipped == 1


def test_a_corpus_that_is_broken_altogether(model: HookedWhisper, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    corpus = Corpus([CorpusItem("a", tmp_path / "a.wav")], on_error="skip")
    with pytest.raises(StoreError, match=r"Nothing was harvested into .*: all clips were left out. The first: Clip"):
        harvest(model, corpus, out=tmp_path / "acts", **OPTIONS)
    with pytest.raises(CorpusError, match="corpus is empty"):
        harvest(model, Corpus(lambda: iter(())), out=tmp_path / "acts", **OPTIONS)


def test_a_stream_that_ends_early(model: HookedWhisper, manifest: Path, tmp_path: Path) -> None:
    items, passes = list(Corpus.from_manifest(manifest)), [0]

    def begin() -> Iterator[CorpusItem]:
        passes[0] += 1
        return iter(items if passes[0] == 1 else items[:4])

    with pytest.raises(CorpusError, match="ended after 4 clips: it had more when the harvest was planned"):
        harvest(model, Corpus(begin), out=tmp_path, **OPTIONS)


def test_hooks_and_options_that_do_not_fit(model: HookedWhisper, manifest: Path, tmp_path: Path) -> None:
    corpus = Corpus.from_manifest(manifest)
    with pytest.raises(HookNameError, match=r"'encoder.hook_ot' matches no hook point. Did you mean 'encoder.hook"):
        harvest(model, corpus, out=tmp_path, **OPTIONS | {"hooks": "encoder.hook_ot"})
    with pytest.raises(ConfigError, match=r"expected one of frames or tokens"):
        harvest(model, corpus, out=tmp_path, **OPTIONS | {"hooks": "encoder.blocks.0.attn.hook_pattern"})
    with pytest.raises(ConfigError, match="Unknown dtype 'int8': expected one of float16, bfloat16, float32"):
        harvest(model, corpus, out=tmp_path, **OPTIONS | {"dtype": "int8"})
    with pytest.raises(ConfigError, match="shard_rows must be at least 1, got 0"):
        harvest(model, corpus, out=tmp_path, **OPTIONS | {"shard_rows": 0})
    assert list(tmp_path.iterdir()) == []


def test_pyarrow_is_asked_for_first(
    model: HookedWhisper, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'hooked-whisper\[train\]'"):
        harvest(model, Corpus.from_manifest(manifest), out=tmp_path, **OPTIONS)


def test_reports_add_up() -> None:
    report = harvesting.HarvestReport(100, 3, 2, seconds=10.0, model_seconds=9.5, n_skipped=1)
    assert report.outside == pytest.approx(0.05)
    assert str(report) == "100 rows of 3 clips in 2 windows; 10.0 s, 5.0% of it outside the model; 1 clips left out"
    assert replace(report, seconds=0.0, model_seconds=0.0).outside == 0
