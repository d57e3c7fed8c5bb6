"""A folder to the hub: what fails for a passing reason is tried again, nothing twice; a refusal says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import Hub, running_hub

from hooked_whisper.errors import PublishError
from hooked_whisper.saes.uploading import Upload, files_there, upload_folder

NAME = "someone/some-sae"
# The client's own, of the library below it.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What is waited, in seconds, without waiting."""
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    return waits


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    with running_hub(tmp_path / "cache", monkeypatch) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A card, a small file, and a large one."""
    folder = tmp_path / "staged"
    (folder / "sae").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Card\n")
    (folder / "sae" / "cfg.json").write_text("{}")
    (folder / "sae" / "sae_weights.safetensors").write_bytes(bytes(range(256)) * 4096)
    return folder


FILES = ["README.md", "sae/cfg.json", "sae/sae_weights.safetensors"]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_files_in_one_commit(folder: Path, hub: Hub) -> None:
    upload = Upload(NAME, private=True, message="All of it")
    assert files_there(upload) == []
    done = upload_folder(folder, upload)
    repository = hub.repositories[NAME]
    assert repository.files() == content(folder)
    assert (repository.titles, repository.private) == (["All of it"], True)
    assert done.commit == repository.branches["main"]
    assert (done.url, done.pull_request_url) == (f"{hub.url}/{NAME}/commit/{done.commit}", None)
    assert files_there(upload) == FILES
    assert files_there(Upload(NAME, branch="not made yet")) == FILES  # it will begin as the main one
    assert upload_folder(folder, upload).commit == done.commit
    assert len(repository.titles) == 1


STEPS = ("repos/create", "validate-yaml", "preupload", "objects/batch", "PUT /lfs/", "/commit/")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("fault", ["the line goes dead", "the answer gets lost", "503"])
def test_at_every_step_it_is_tried_again(folder: Path, hub: Hub, waits: list[float], step: str, fault: str) -> None:
    if fault == "the line goes dead":
        hub.break_off(step)
    elif fault == "the answer gets lost":
        hub.lose_answer(step)
    else:
        hub.answer_with(step, 503)
    upload_folder(folder, Upload(NAME))
    assert hub.faults == []
    assert hub.repositories[NAME].files() == content(folder)
    assert len(hub.repositories[NAME].titles) == 1  # what was committed is not committed again
    assert waits and max(waits) <= 2


def test_what_keeps_failing_is_given_up_and_nothing_is_lost(folder: Path, hub: Hub, waits: list[float]) -> None:
    before = content(folder)
    hub.answer_with("/commit/", 502, times=4)
    with pytest.raises(
        PublishError, match=r"Could not upload the files of 'someone/some-sae' in 4 attempt\(s\): .*502"
    ):
        upload_folder(folder, Upload(NAME, attempts=4))
    assert waits == [1, 2, 4]
    assert hub.repositories[NAME].files() == {}
    assert content(folder) == before
    sent = [request for request in hub.requests if request.startswith("PUT /lfs/")]
    upload_folder(folder, Upload(NAME))
    assert [request for request in hub.requests if request.startswith("PUT /lfs/")] == sent  # they had arrived
    assert hub.repositories[NAME].files() == before


def test_to_a_branch(folder: Path, hub: Hub) -> None:
    hub.lose_answer("/branch/")
    for _ in range(2):
        upload_folder(folder, Upload(NAME, branch="try"))
    assert hub.repositories[NAME].files("try") == content(folder)
    assert hub.repositories[NAME].files("main") == {}
    assert sorted(files_there(Upload(NAME, branch="try"))) == FILES


def test_as_a_pull_request_that_is_opened_once(folder: Path, hub: Hub) -> None:
    hub.lose_answer("/commit/")
    done = upload_folder(folder, Upload(NAME, pull_request=True))
    repository = hub.repositories[NAME]
    assert sorted(repository.branches) == ["main", "refs/pr/1"]
    assert repository.files("refs/pr/1") == content(folder)
    assert done.pull_request_url == f"{hub.url}/{NAME}/discussions/1"
    hub.answer_with("/discussions", 503)
    with pytest.raises(PublishError, match=r"Could not open a pull request of .* in 1 attempt"):
        upload_folder(folder, Upload(NAME, pull_request=True))


@pytest.mark.parametrize(
    ("step", "code", "message"),
    [
        (
            "repos/create",
            401,
            r"refused to make the repository of .*\(HTTP 401\): log in with `hf auth login`, or pass a",
        ),
        ("repos/create", 403, r"\(HTTP 403\): the token may not write to 'someone': take one with write access"),
        ("/commit/", 403, r"refused to upload the files of .*\(HTTP 403\): the token may not write to 'someone'"),
        ("preupload", 404, r"\(HTTP 404\): there is no user or organisation 'someone', no such branch, or the token"),
        ("objects/batch", 413, r"\(HTTP 413\): a file is too large"),
        ("PUT /lfs/", 403, r"\(HTTP 403\): .* It says: Error while uploading 'sae/sae_weights.safetensors'.*: 403"),
        ("/branch/", 400, r"refused to make the branch of .*\(HTTP 400\): see what it says. It says: Bad request"),
        ("validate-yaml", 400, r"\(HTTP 400\): see what it says. It says: Invalid metadata in README.md"),
        ("GET /api/models", 403, r"refused to list the files of .*\(HTTP 403\)"),
    ],
)
def test_a_refusal_says_what_to_do(
    folder: Path, hub: Hub, waits: list[float], step: str, code: int, message: str
) -> None:
    hub.answer_with(step, code)
    upload = Upload(NAME, branch="b" if step == "/branch/" else None)
    with pytest.raises(PublishError, match=message):
        files_there(upload) if step.startswith("GET") else upload_folder(folder, upload)
    assert waits == []  # it is not asked again
    assert not any(repository.files() for repository in hub.repositories.values())


def test_a_file_that_is_gone(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.is_file", lambda path: True)  # the folder too is taken for a file
    with pytest.raises(PublishError, match="Could not upload the files of"):
        upload_folder(folder, Upload(NAME, attempts=1))


def test_the_token_is_shown(folder: Path, hub: Hub) -> None:
    hub.token = "secret"
    with pytest.raises(PublishError, match=r"HTTP 403.*take one with write access"):
        upload_folder(folder, Upload(NAME, token="another"))
    assert upload_folder(folder, Upload(NAME, token="secret")).commit


def test_a_hub_that_is_gone(folder: Path, hub: Hub, waits: list[float]) -> None:
    hub.close()
    with pytest.raises(PublishError, match=r"in 3 attempt\(s\): .*publish again when hub and network are well"):
        upload_folder(folder, Upload(NAME, attempts=3))
    assert waits == [1, 2]
