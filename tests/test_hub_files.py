"""Files of hub repositories: from the hub, or from its cache where it is not asked or does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import COMMIT, Hub, running_hub

from hooked_whisper.errors import SaeError
from hooked_whisper.saes.hub_files import fetch_file, is_repository, list_files

NAME = "some/saes"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with running_hub(tmp_path / "cache", monkeypatch) as running:
        (tmp_path / "repository" / "a").mkdir(parents=True)
        (tmp_path / "repository" / "a" / "x.json").write_text("{}")
        (tmp_path / "repository" / "y.json").write_text("[]")
        running.folders[NAME] = tmp_path / "repository"
        yield running


def test_listed_and_fetched(hub: Hub) -> None:
    assert list_files(NAME) == list_files(NAME, COMMIT) == ["a/x.json", "y.json"]
    assert fetch_file(NAME, "a/x.json").read_text() == "{}"
    requests = len(hub.requests)
    assert list_files(NAME, local_files_only=True) == ["a/x.json"]  # what was fetched
    assert fetch_file(NAME, "a/x.json", local_files_only=True).read_text() == "{}"
    assert len(hub.requests) == requests
    hub.close()
    assert list_files(NAME) == ["a/x.json"]
    assert fetch_file(NAME, "a/x.json").read_text() == "{}"


def test_what_is_not_there(hub: Hub) -> None:
    with pytest.raises(SaeError, match="There is no 'b.json' of the hub repository 'some/saes'"):
        fetch_file(NAME, "b.json")
    with pytest.raises(
        SaeError, match=r"There is no hub repository 'no/where', or it is private: log in with `hf auth"
    ):
        list_files("no/where")
    with pytest.raises(SaeError, match="has no revision 'v2'"):
        list_files(NAME, "v2")
    with pytest.raises(SaeError, match="'some/saes/more' is neither an existing path nor the id of a hub repository"):
        list_files("some/saes/more")
    hub.gated.add(NAME)
    with pytest.raises(SaeError, match="is gated: accept its terms on the hub and log in"):
        fetch_file(NAME, "y.json")


def test_a_hub_that_fails(hub: Hub) -> None:
    hub.answer_with("GET /api/models", 500, times=9)
    with pytest.raises(SaeError, match="is not in the hub's cache, and the hub was not asked or cannot be reached"):
        list_files(NAME)
    hub.close()
    with pytest.raises(SaeError, match="'y.json' of the hub repository 'some/saes' is not in the hub's cache"):
        fetch_file(NAME, "y.json")


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("user/name", True),
        ("Egorgij21/Audio-SAE-Whisper-small", True),
        ("name", False),
        ("a/b/c", False),
        ("a b/c", False),
    ],
)
def test_names_of_repositories(name: str, is_one: bool) -> None:
    assert is_repository(name) == is_one
