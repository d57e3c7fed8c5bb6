"""Sends a folder to a hub repository in one commit, tries again where the line or the hub fails, says what is refused.

Each attempt does all that is missing and nothing twice: the repository and the branch may be there already, large files
that arrived stay arrived, and a commit whose files are all there already is not made again. Until the commit is made
the repository is as it was.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from hooked_whisper.errors import PublishError

Result = TypeVar("Result")

# Where trying again may help: the hub is overloaded, restarts, or gives up on its own storage.
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_LONGEST_WAIT_SECONDS = 60


@dataclass(frozen=True)
class Upload:
    """Where files go.

    Attributes:
        repository: hub id, "user/name".
        private: what a repository that is made for this is; one that is there stays as it is.
        branch: None for "main"; made where it is missing.
        pull_request: open one, and send the files there.
        token: None takes the one that is logged in.
        message: of the commit.
        attempts: how often to try what failed for a passing reason.
    """

    repository: str
    private: bool = False
    branch: str | None = None
    pull_request: bool = False
    token: str | None = None
    message: str = "Publish"
    attempts: int = 5


@dataclass(frozen=True)
class Uploaded:
    """What came of it: the commit's id and page, and the pull request's page if there is one."""

    commit: str
    url: str
    pull_request_url: str | None


def upload_folder(folder: Path, upload: Upload) -> Uploaded:
    """Makes the repository where it is missing and commits all files of `folder` to it.

    Raises:
        PublishError: refused, or still failing after the last attempt; says what to do. Nothing is lost: the files
            are where they were, and publishing once more goes on where this ended.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(token=upload.token)
    private = upload.private
    _attempt(upload, "make the repository", lambda: api.create_repo(upload.repository, private=private, exist_ok=True))
    revision, page = upload.branch, None
    if upload.branch is not None and upload.branch != "main":
        branch = upload.branch
        _attempt(upload, "make the branch", lambda: api.create_branch(upload.repository, branch=branch, exist_ok=True))
    if upload.pull_request:
        # Opened by itself and first: a commit that opens one would open a second if its answer got lost.
        request = _attempt(
            upload, "open a pull request", lambda: api.create_pull_request(upload.repository, upload.message), once=True
        )
        revision, page = f"refs/pr/{request.num}", request.url

    def commit() -> Any:
        additions = [
            CommitOperationAdd(path_in_repo=path.relative_to(folder).as_posix(), path_or_fileobj=path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
        return api.create_commit(upload.repository, additions, commit_message=upload.message, revision=revision)

    done = _attempt(upload, "upload the files", commit)
    return Uploaded(done.oid, done.commit_url, page)


def files_there(upload: Upload) -> list[str]:
    """The files of the repository, or of its branch; none where it is still to be made.

    Raises:
        PublishError: refused, or still failing after the last attempt.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(token=upload.token)

    def ask(revision: str | None) -> list[str] | None:
        try:
            return [file.rfilename for file in api.model_info(upload.repository, revision=revision).siblings or []]
        except RevisionNotFoundError:
            return None
        except RepositoryNotFoundError:
            return []

    found = _attempt(upload, "list the files", lambda: ask(upload.branch))
    # A branch that is made now begins as the main one.
    return _attempt(upload, "list the files", lambda: ask(None)) or [] if found is None else found


def _attempt(upload: Upload, what: str, action: Callable[[], Result], *, once: bool = False) -> Result:
    """What `action` returns; tried again, after longer and longer waits, while the reason may pass."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # pyright: ignore[reportPrivateImportUsage]

    last = 1 if once else max(1, upload.attempts)
    for number in range(1, last + 1):
        done, error = _try(action)
        if error is None:
            return cast("Result", done)
        cause = _cause(error)
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else None
        is_of_the_line = isinstance(cause, HTTPError | OSError) and status is None
        if not is_of_the_line and status not in _PASSING:
            raise _refused(upload, what, error, status) from error
        if number == last:
            raise PublishError(
                f"Could not {what} of {upload.repository!r} in {last} attempt(s): {_first_line(cause)}. Nothing is "
                "lost, here or on the hub: publish again when hub and network are well, and it goes on where this "
                "ended."
            ) from error
        wait = min(2 ** (number - 1), _LONGEST_WAIT_SECONDS)
        logging.warning(
            f"Could not {what} of {upload.repository!r}: {_first_line(cause)}. Trying again in {wait} s "
            f"({number} of {last} attempts made)."
        )
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _try(action: Callable[[], Result]) -> tuple[Result | None, Exception | None]:
    """What `action` returns, or the error with which hub or line refuse it."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        return action(), None
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the client's upload threads wrap theirs
        return None, error


def _cause(error: BaseException) -> BaseException:
    """What lies behind an error that the client wraps, as it does those of its upload threads."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    found: BaseException | None = error
    while found is not None:
        if isinstance(found, HTTPError | OSError):
            return found
        found = found.__cause__
    return error


def _refused(upload: Upload, what: str, error: BaseException, status: int | None) -> PublishError:
    name = upload.repository
    user = name.partition("/")[0]
    advice = {
        401: "log in with `hf auth login`, or pass a token= that may write",
        403: f"the token may not write to {user!r}: take one with write access, or publish under a name of your own",
        404: f"there is no user or organisation {user!r}, no such branch, or the token does not see it: check the name "
        "and log in with `hf auth login`",
        409: "something of that name is there already and is in the way",
        413: "a file is too large for the hub",
    }
    said = _first_line(error)
    if _cause(error) is not error:
        said = f"{said}: {_first_line(_cause(error))}"
    if status is None:
        return PublishError(f"Could not {what} of {name!r}: {said}.")
    hint = advice.get(status, "see what it says")
    return PublishError(f"The hub refused to {what} of {name!r} (HTTP {status}): {hint}. It says: {said}.")


def _first_line(error: BaseException) -> str:
    """What an error says in a line; one that ends in a colon goes on in the next."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    n_lines = 2 if lines and lines[0].endswith(":") else 1
    return " ".join(lines[:n_lines]).rstrip(".:") or type(error).__name__
