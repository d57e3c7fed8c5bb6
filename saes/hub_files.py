"""Files of a hub repository that is no Whisper: which there are, and one of them on this machine.

The hub is asked first, and given up after ten seconds; then what its cache holds has to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hooked_whisper.errors import SaeError

TIMEOUT_SECONDS = 10
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str) -> bool:
    """Whether `name` could be a hub repository's id, "user/name"."""
    return REPOSITORY.fullmatch(name) is not None


def list_files(repository: str, revision: str | None = None, *, local_files_only: bool = False) -> list[str]:
    """The files of a hub repository; those in the hub's cache where the hub is not asked or does not answer.

    Raises:
        SaeError: no such repository or revision, no access, or neither hub nor cache has it.
    """
    from huggingface_hub import HfApi, snapshot_download

    with _told(repository, revision):
        if not local_files_only:
            with _unreachable_is_none():
                info = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
                return sorted(file.rfilename for file in info.siblings or [])
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def fetch_file(repository: str, name: str, revision: str | None = None, *, local_files_only: bool = False) -> Path:
    """One file of a hub repository, in the hub's cache.

    Raises:
        SaeError: as `list_files`, or no such file.
    """
    from huggingface_hub import hf_hub_download

    with _told(repository, revision, name):
        return Path(
            hf_hub_download(
                repository,
                name,
                revision=revision,
                etag_timeout=TIMEOUT_SECONDS,
                local_files_only=local_files_only,
            )
        )


@contextmanager
def _unreachable_is_none() -> Iterator[None]:
    """Lets a hub that cannot be reached pass; what it answers is for `_told`."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] the HTTP library's, which differs between hub versions
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except (HTTPError, OSError):
        return


@contextmanager
def _told(repository: str, revision: str | None, name: str | None = None) -> Iterator[None]:
    """What the hub's client raises, as an SaeError that says what to do."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"hub repository {repository!r}" if name is None else f"{name!r} of the hub repository {repository!r}"
    try:
        yield
    except GatedRepoError as error:
        raise SaeError(
            f"The hub repository {repository!r} is gated: accept its terms on the hub and log in with `hf auth login`."
        ) from error
    except RevisionNotFoundError as error:
        raise SaeError(f"The hub repository {repository!r} has no revision {revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise SaeError(
            f"There is no hub repository {repository!r}, or it is private: log in with `hf auth login`, or look for a "
            "spelling mistake. A path would have to exist."
        ) from error
    except LocalEntryNotFoundError as error:
        raise SaeError(
            f"The {what} is not in the hub's cache, and the hub was not asked or cannot be reached. Connect and try "
            "again, or give the path of a local folder."
        ) from error
    except EntryNotFoundError as error:
        raise SaeError(f"There is no {what}.") from error
    except HFValidationError as error:
        raise SaeError(f"{repository!r} is neither an existing path nor the id of a hub repository: {error}") from error
    except (HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SaeError(f"The {what} cannot be fetched: {reason}. Try again, or give a local path.") from error
