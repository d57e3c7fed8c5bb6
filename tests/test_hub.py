"""The hub: what is downloaded of a repository, what the cache gives, and how soon one hears that it is out of reach.

A small server on this machine plays the hub (`loopback_hub`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoint_files import (
    IN_SHARDS,
    assert_same_model,
    bundled_folder,
    random_whisper,
    write_bin,
    write_ctranslate2,
)
from loopback_hub import Hub, running_hub

from hooked_whisper import hub
from hooked_whisper.checkpoints import load_checkpoint
from hooked_whisper.errors import CheckpointError


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that can be reached, and an empty cache."""
    with running_hub(tmp_path / "cache", monkeypatch) as hub:
        yield hub


WRITERS = {
    "safetensors": lambda model, path: model.save_pretrained(path),
    "shards": lambda model, path: model.save_pretrained(path, max_shard_size=IN_SHARDS),
    "bin": lambda model, path: write_bin(model, path, sharded=False),
    "bin shards": lambda model, path: write_bin(model, path, sharded=True),
    "ctranslate2": write_ctranslate2,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_downloads_what_is_needed_once(kind: str, tmp_path: Path, fake_hub: Hub) -> None:
    model = random_whisper()
    folder = tmp_path / "repository"
    WRITERS[kind](model, folder)
    for unwanted in ("README.md", "flax_model.msgpack", "onnx/config.json", "tf_model.h5"):
        (folder / unwanted).parent.mkdir(exist_ok=True)
        (folder / unwanted).write_bytes(b"unwanted")
    if kind == "safetensors":
        (folder / "pytorch_model.bin").write_bytes(b"unwanted")
    fake_hub.folders["someone/whisper-odd"] = folder
    checkpoint = load_checkpoint("someone/whisper-odd")
    assert_same_model(checkpoint, model)
    assert checkpoint.config.model_name == "someone/whisper-odd"
    assert checkpoint.source.startswith("someone/whisper-odd from the hub: ")
    unwanted = [name for name in fake_hub.asked if (folder / name).read_bytes() == b"unwanted"]
    assert unwanted == []
    # Then it is in the cache: found without asking, and where the hub is gone.
    fake_hub.asked.clear()
    cached = load_checkpoint("someone/whisper-odd", local_files_only=True)
    assert_same_model(cached, model)
    assert "from the hub's cache (the hub was not asked" in cached.source
    fake_hub.close()
    unreachable = load_checkpoint("someone/whisper-odd")
    assert_same_model(unreachable, model)
    assert "from the hub's cache (the hub could not be reached" in unreachable.source
    assert fake_hub.asked == []


def test_repositories_that_are_not_there_or_closed(tmp_path: Path, fake_hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"no repository 'openai/whisper-bse' .* mean 'openai/whisper-base'"):
        load_checkpoint("openai/whisper-bse")
    random_whisper().save_pretrained(tmp_path / "whisper")
    fake_hub.folders |= {"some/whisper": tmp_path / "whisper", "shut/whisper": tmp_path / "whisper"}
    with pytest.raises(CheckpointError, match="no revision 'v9' of 'some/whisper' on the hub"):
        load_checkpoint("some/whisper", revision="v9")
    fake_hub.gated.add("shut/whisper")
    with pytest.raises(CheckpointError, match=r"'shut/whisper' is gated: accept its terms"):
        load_checkpoint("shut/whisper")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").touch()
    fake_hub.folders["some/data"] = tmp_path / "data"
    with pytest.raises(CheckpointError, match=r"'some/data' is no checkpoint: it has no config\.json; found train"):
        load_checkpoint("some/data")


def test_a_tokenizer_from_the_hub(tmp_path: Path, fake_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a checkpoint that has none beside it; of the repository that has it, nothing else is fetched."""
    random_whisper().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "tokenizer.json").write_bytes((bundled_folder() / "tokenizer.json").read_bytes())
    fake_hub.folders["openai/whisper-tiny"] = tmp_path / "tiny"
    monkeypatch.setattr("hooked_whisper.tokenizer_sources.find_bundled", lambda: None)
    model = random_whisper(d_vocab=51865)
    checkpoint = load_checkpoint(model)
    assert checkpoint.source.endswith("; the tokenizer of openai/whisper-tiny")
    assert checkpoint.tokenizer is not None
    assert checkpoint.tokenizer.sot == 50258
    assert set(fake_hub.asked) == {"tokenizer.json"}
    assert load_checkpoint(model, tokenizer="openai/whisper-tiny").tokenizer is not None
    fake_hub.folders["some/model"] = tmp_path / "bare"
    random_whisper().save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match=r"'some/model' is no tokenizer: it has no tokenizer\.json"):
        load_checkpoint(model, tokenizer="some/model")
    with pytest.raises(CheckpointError, match=r"bare holds no tokenizer: expected tokenizer\.json"):
        load_checkpoint(model, tokenizer=tmp_path / "bare")


def test_a_hub_that_never_answers_is_given_up(tmp_path: Path, fake_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection and says nothing: a firewall may do that."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.2)
        with pytest.raises(CheckpointError, match=r"the hub could not be reached \(.*timed out"):
            load_checkpoint("openai/whisper-tiny")


@pytest.mark.parametrize("name", ["openai/whisper-tiny", "tiny", "turbo", "large-v3"])
@pytest.mark.parametrize("local_files_only", [False, True])
def test_a_hub_that_is_out_of_reach(
    name: str, local_files_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    what = r"was not asked \(local_files_only=True\)" if local_files_only else "could not be reached"
    with pytest.raises(CheckpointError, match=rf"'openai/whisper-.* {what}.*local folder.*hooked-whisper\[demo\]"):
        load_checkpoint(name, local_files_only=local_files_only)


def test_without_a_network_it_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only where HF_HUB_OFFLINE is set: the name of the hub cannot be resolved, and nothing retries for long."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)

    def unknown(*args: Any, **kwargs: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(CheckpointError, match="could not be reached"):
        load_checkpoint("openai/whisper-tiny")
    assert sum(waits) < 5
