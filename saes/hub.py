"""SAEs from folders, from the hub and from this package; and to the hub, in SAELens's format.

    sae = load_sae("runs/base-out")                                  # a run, or a folder that SAELens saved
    sae = load_sae("user/whisper-base-sae", hook="encoder.hook_out")  # a hub repository
    sae = load_sae("whisper-base/encoder.hook_out")                   # shipped with this package
    publish_sae("runs/base-out", "user/whisper-base-sae", licence="cc-by-sa-4.0")

A run is a folder with the SAE for inference in `sae/`, with `training.json`, and, where they were made, an evaluation
and a dashboard. In a repository each SAE lies in a folder named after its hook, which is its id for SAELens:
`SAE.from_pretrained("user/whisper-base-sae", "encoder.hook_out")`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

import hooked_whisper
from hooked_whisper.axes import axes
from hooked_whisper.config import resolve_device, resolve_dtype
from hooked_whisper.errors import CheckpointError, HookedWhisperError, PublishError, SaeError, did_you_mean
from hooked_whisper.file_modes import as_new_file
from hooked_whisper.huggingface import read_json
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.saes.hub_files import fetch_file, is_repository, list_files
from hooked_whisper.saes.model_card import model_card
from hooked_whisper.saes.report import SaeReport
from hooked_whisper.saes.saelens import import_saelens
from hooked_whisper.saes.uploading import Upload, files_there, upload_folder

if TYPE_CHECKING:
    from sae_lens import SAE

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SHIPPED = Path(__file__).parent / "shipped"
# Beside `sae/` in a run's folder, and in the SAE's folder of a repository.
BESIDE = ("training.json", "evaluation.json", "evaluation.md", "evaluation.png")
DASHBOARD = "dashboard"
# The oldest format of SAELens in which metadata are as they are now.
_PRESENT_FORMAT = "6.0.0"


# Loading


def load_sae(
    name: str | os.PathLike[str],
    *,
    hook: str | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    local_files_only: bool = False,
) -> SAE[Any]:
    """An SAE for inference, as SAELens's class, with metadata.

    Args:
        name: a run's folder, a folder that SAELens saved, a folder of several; the name of a shipped one, such as
            "whisper-base/encoder.hook_out"; or a hub repository, "user/name".
        hook: which one, where there are several: the name of its folder, or of the hook that it reads.
        revision: of a hub repository.
        device: None takes the CPU, as SAELens does; a model moves what is attached to it.
        dtype: None takes float32, whatever it was saved in.
        local_files_only: look for a hub repository in the cache alone.

    Raises:
        SaeError: nothing there, several and none named, or files that are damaged, of another format, or of an SAE in
            training. ConfigError: no such device or dtype. MissingExtraError: SAELens is not installed.
    """
    place = torch.device("cpu") if device is None else resolve_device(device)
    precision = str(resolve_dtype(dtype)).removeprefix("torch.")
    folder = _find(name, hook, revision, local_files_only)
    return _load_folder(folder, str(place), precision)


def shipped_saes() -> list[str]:
    """Names of the SAEs that come with this package, for `load_sae`."""
    return sorted(path.parent.relative_to(SHIPPED).as_posix() for path in SHIPPED.glob(f"*/*/{CONFIG}"))


def _find(name: str | os.PathLike[str], hook: str | None, revision: str | None, local_files_only: bool) -> Path:
    """The folder with the SAE's two files."""
    path = Path(name)
    if path.exists():
        return _in_folder(path, hook)
    text = str(name)
    if text in shipped_saes():
        return SHIPPED / text
    if not is_repository(text):
        raise SaeError(
            f"There is no SAE {text!r}: expected a folder, a hub repository 'user/name', or a shipped one: "
            f"{', '.join(shipped_saes()) or 'none here'}."
        )
    try:
        files = list_files(text, revision, local_files_only=local_files_only)
    except SaeError as error:
        hint = did_you_mean(text, shipped_saes())
        raise SaeError(f"{error}{hint}") from error
    folders = [file.removesuffix(CONFIG).rstrip("/") for file in files if file.rpartition("/")[2] == CONFIG]
    folder = _one_of(text, folders, hook)
    inside = f"{folder}/" if folder else ""
    if f"{inside}{WEIGHTS}" not in files:
        raise SaeError(f"The hub repository {text!r} has {inside}{CONFIG} and no {inside}{WEIGHTS}.")
    for file in (CONFIG, WEIGHTS):
        fetched = fetch_file(text, f"{inside}{file}", revision, local_files_only=local_files_only)
    return fetched.parent


def _in_folder(path: Path, hook: str | None) -> Path:
    if not path.is_dir():
        raise SaeError(f"{path} is a file, expected the folder with {CONFIG} and {WEIGHTS}.")
    for own in (path, path / "sae"):
        if (own / CONFIG).exists():
            read = _config(own).get("metadata", {}).get("hook_name")
            if hook not in (None, read):
                raise SaeError(f"The SAE in {own} is for {read!r}, and hook={hook!r} was asked for.")
            return own
    found = sorted({*path.glob(f"*/{CONFIG}"), *path.glob(f"*/sae/{CONFIG}")})
    folders = {config.parent.relative_to(path).as_posix(): config.parent for config in found}
    reads = {name: _config(folder).get("metadata", {}).get("hook_name") for name, folder in folders.items()}
    by_hook = [name for name, read in reads.items() if hook is not None and read == hook]
    return folders[by_hook[0] if len(by_hook) == 1 else _one_of(str(path), list(folders), hook)]


def _one_of(where: str, folders: list[str], hook: str | None) -> str:
    if not folders:
        raise SaeError(f"{where!r} holds no SAE of SAELens's: expected {CONFIG} and {WEIGHTS}, there or in a folder.")
    fitting = folders if hook is None else [name for name in folders if hook in (name, name.removesuffix("/sae"))]
    if len(fitting) != 1:
        wanted = "name one with hook=" if hook is None else f"hook={hook!r} was asked for"
        raise SaeError(f"{where!r} holds the SAEs {', '.join(folders)}: {wanted}.")
    return fitting[0]


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / CONFIG)
    except CheckpointError as error:
        raise SaeError(str(error)) from error
    if not isinstance(config.get("metadata", {}), dict):
        raise SaeError(f"{folder / CONFIG} has metadata that are no object.")
    return config


def _load_folder(folder: Path, device: str, dtype: str) -> SAE[Any]:
    sae_lens = import_saelens()
    from sae_lens.loading.pretrained_sae_loaders import sae_lens_disk_loader

    config = _config(folder)
    architecture = config.get("architecture", "standard")
    _check_architecture(folder, architecture)

    def read(path: str | Path, device: str, cfg_overrides: dict[str, Any] | None) -> tuple[dict[str, Any], Any]:
        found, weights = sae_lens_disk_loader(path, device, cfg_overrides)
        if "metadata" in found:  # without a version SAELens takes them for those of its old format and drops them
            found["metadata"].setdefault("sae_lens_version", _PRESENT_FORMAT)
        return found, weights

    try:
        sae = sae_lens.SAE.load_from_disk(folder, device=device, dtype=dtype, converter=read)
        if not sae.hook_z_reshaping_mode:  # which would take the row's width for that of a head
            with torch.no_grad():  # settings that no SAE can have show when it runs
                sae.encode(torch.zeros(1, 1, sae.cfg.d_in, device=device))
        return sae
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise SaeError(
            f"The SAE in {folder} cannot be loaded: {_first_line(error)}. Its files are damaged, missing, or do not "
            "belong together: fetch or save them again."
        ) from error


def _check_architecture(folder: Path, architecture: object) -> None:
    import_saelens()
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    if architecture in SAE_CLASS_REGISTRY:
        return
    if architecture in SAE_TRAINING_CLASS_REGISTRY:
        raise SaeError(
            f"{folder} holds an SAE in training ({architecture}), which needs the whole batch to choose features: save "
            "it for inference with save_inference_model(folder), and use that folder."
        )
    raise SaeError(
        f"{folder} holds an SAE of an unknown architecture {architecture!r}: this SAELens knows "
        f"{', '.join(sorted(SAE_CLASS_REGISTRY))}."
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}".rstrip(". :")


# Publishing


@dataclass(frozen=True)
class Published:
    """What was published, or, after a dry run, would be.

    Attributes:
        repository: hub id.
        sae_id: the SAE's folder there.
        files: all files of the commit.
        card: the README.
        commit, url: of the commit; None after a dry run.
        pull_request_url: None unless one was opened.
    """

    repository: str
    sae_id: str
    files: tuple[str, ...]
    card: str
    commit: str | None = None
    url: str | None = None
    pull_request_url: str | None = None


def publish_sae(
    source: str | os.PathLike[str] | SAE[Any],
    repo_id: str,
    *,
    hook: str | None = None,
    dashboard: str | os.PathLike[str] | None = None,
    licence: str | None = None,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    commit_message: str | None = None,
    attempts: int = 5,
) -> Published:
    """Publishes an SAE on the Hugging Face hub, in SAELens's format for inference, with a card and its evaluation.

    One commit puts the SAE into the folder that is called like its hook, and the card into README.md; other SAEs of
    the repository stay.

    Args:
        source: a run's folder, a folder that SAELens saved, or an SAE.
        repo_id: hub repository, "user/name"; made where it is missing.
        hook: which SAE of a folder of several, as in `load_sae`.
        dashboard: folder of the SAE's dashboard (`hooked_whisper.analysis.dashboard`), which goes along; None takes
            the run's folder "dashboard", if there is one.
        licence: of the SAE, as SPDX or the hub writes it, such as "cc-by-sa-4.0".
        private: whether a repository that is made now is private.
        revision: a branch; made where it is missing.
        create_pr: open a pull request with the commit.
        dry_run: prepare and check everything, and send nothing.
        token: of the hub; None takes the one that is logged in.
        metadata: further metadata of the SAE, over what its files say: model_name, hook_name, corpus, ...
        commit_message: None says which SAE of which model it is.
        attempts: how often to try where the line or the hub fails.

    Returns:
        What was published, and where.

    Raises:
        PublishError: an SAE that cannot be published as it is, a hub that refuses, or that still fails after the last
            attempt. Then nothing is lost, and publishing again goes on where this ended.
        SaeError: no SAE there, or a damaged one. MissingExtraError: SAELens is not installed.
    """
    if not is_repository(repo_id):
        raise PublishError(f"{repo_id!r} is no hub repository: expected 'user/name'.")
    if create_pr and revision not in (None, "main"):
        raise PublishError("A pull request is opened against the main branch: leave out either create_pr or revision.")
    with tempfile.TemporaryDirectory() as temporary:
        staging = Path(temporary)
        config, sae_id, extras = _stage(source, hook, staging, licence, metadata or {})
        own = _run(source, hook) / DASHBOARD if isinstance(source, str | os.PathLike) else None
        pages = own if dashboard is None else Path(dashboard)
        if pages is not None and (dashboard is not None or pages.is_dir()):
            extras += _stage_dashboard(pages, sae_id, staging / sae_id / DASHBOARD)
        message = commit_message or f"SAE for {config['metadata']['model_name']}, {sae_id}"
        upload = Upload(repo_id, private, revision, create_pr, token, message, attempts)
        others = set() if dry_run else _folders(files_there(upload)) - {sae_id}
        evaluation = staging / sae_id / "evaluation.md"
        card = model_card(
            repo_id,
            sae_id,
            config,
            evaluation=evaluation.read_text(encoding="utf-8") if evaluation.exists() else None,
            files=extras,
            others=sorted(others),
            revision=None if create_pr or revision == "main" else revision,
        )
        (staging / "README.md").write_text(card, encoding="utf-8")
        files = tuple(sorted(path.relative_to(staging).as_posix() for path in staging.rglob("*") if path.is_file()))
        published = Published(repo_id, sae_id, files, card)
        if dry_run:
            return published
        done = upload_folder(staging, upload)
    return Published(repo_id, sae_id, files, card, done.commit, done.url, done.pull_request_url)


def _stage(
    source: Any, hook: str | None, staging: Path, licence: str | None, further: Mapping[str, Any]
) -> tuple[dict[str, Any], str, list[str]]:
    """Lays out what is uploaded; returns the SAE's configuration, its folder, and what else lies there."""
    raw = staging / ".saved"
    if isinstance(source, str | os.PathLike):
        given = Path(source)
        if not given.exists():
            raise PublishError(f"There is no folder {given}: expected a run, or a folder that SAELens saved.")
        origin = _in_folder(given, hook)
        run = _run(given, hook)
    else:
        run, origin = None, raw
        _save(source, raw)
    _load_folder(origin, "cpu", "float32")  # what cannot be loaded is not published
    config = _config(origin)
    evaluation = None if run is None else _evaluation(run / "evaluation.json")
    training = _json(run / "training.json") if run is not None and (run / "training.json").exists() else {}
    if training.get("status", "finished") != "finished":
        raise PublishError(f"The run in {run} is not finished (it is {training['status']!r}): go on with it first.")
    config["metadata"] = _metadata(config, training, evaluation, licence, further)
    sae_id = config["metadata"]["hook_name"]
    target = staging / sae_id
    target.mkdir()
    shutil.copyfile(origin / WEIGHTS, target / WEIGHTS)
    (target / CONFIG).write_text(json.dumps(config, indent=1, ensure_ascii=False), encoding="utf-8")
    extras = []
    for name in BESIDE if run is not None else ():
        if run is not None and (run / name).exists():
            shutil.copyfile(run / name, target / name)
            extras.append(name)
    shutil.rmtree(raw, ignore_errors=True)
    return config, sae_id, extras


def _run(source: str | os.PathLike[str], hook: str | None) -> Path:
    """The folder of a run, or the SAE's own where it is not in a run."""
    given = Path(source)
    origin = _in_folder(given, hook)
    return origin.parent if origin.name == "sae" and origin != given else origin


def _stage_dashboard(pages: Path, sae_id: str, target: Path) -> list[str]:
    """Copies a dashboard; returns what the card names of it.

    Raises:
        PublishError: no index there, or a dashboard that is unfinished or of another hook.
    """
    if not any(pages.glob("*.html")):
        raise PublishError(
            f"{pages} holds no dashboard: expected a folder with index.html, as make_dashboard writes it."
        )
    about = _json(pages / "dashboard.json") if (pages / "dashboard.json").exists() else {}
    if about.get("complete", True) is not True:
        raise PublishError(f"The dashboard in {pages} is unfinished: make it again.")
    if about.get("hook", sae_id) != sae_id:
        raise PublishError(f"The dashboard in {pages} is of {about['hook']!r}, and the SAE of {sae_id!r}.")
    shutil.copytree(pages, target)
    return [f"{DASHBOARD}/{min(path.name for path in pages.glob('*.html'))}"]


def _save(sae: Any, folder: Path) -> None:
    sae_lens = import_saelens()
    if not isinstance(sae, sae_lens.SAE):
        raise PublishError(f"Expected an SAE of SAELens's, or the folder of one, got {type(sae).__name__}.")
    if isinstance(sae, sae_lens.TrainingSAE):
        raise PublishError(
            f"{type(sae).__name__} is in training, and what is published is for inference: save it with "
            "save_inference_model(folder), and publish that folder."
        )
    sae.save_model(folder)
    for written in folder.glob("*.safetensors"):
        as_new_file(written)


def _metadata(
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    evaluation: SaeReport | None,
    licence: str | None,
    further: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that is known about the SAE; what is given here goes over what its files say."""
    known = dict(config.get("metadata", {}))
    source, figures, made_with = (_part(training, name) for name in ("source", "figures", "versions"))
    settings = {name: training[name] for name in ("settings", "run", "steps", "rows") if name in training}
    found = {
        "model_name": source.get("model"),
        "k": _part(training, "settings").get("k"),
        "frame_rate": source.get("rate"),
        "corpus": source.get("corpus"),
        "licences": source.get("licences"),
        "weights_sha256": source.get("weights_sha256"),
        "training_settings": settings or None,
        "training_figures": figures or None,
        "metrics": None if evaluation is None else _figures(evaluation),
    }
    known = {**{name: value for name, value in found.items() if value is not None}, **known, **further}
    known.setdefault("sae_lens_version", version("sae-lens"))
    here = {"hooked_whisper": hooked_whisper.__version__, "sae_lens": version("sae-lens"), "torch": torch.__version__}
    known["versions"] = {**here, **made_with, **_part(known, "versions")}
    if licence is not None:
        known["licence"] = licence
    for name, meaning in {"model_name": "which model", "hook_name": "which hook"}.items():
        value = known.get(name)
        if not isinstance(value, str) or not value or (name == "hook_name" and not _is_hook(value)):
            raise PublishError(
                f"The SAE does not say {meaning} it is for ({name} is {value!r}), and without that nobody can use it: "
                f"pass metadata={{{name!r}: ...}}."
            )
    if known.get("frame_rate") is None and "frame" in axes(known["hook_name"]):
        known["frame_rate"] = FRAMES_PER_SECOND
    try:
        json.dumps(known, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise PublishError(f"The SAE's metadata cannot be written as JSON: {error}.") from error
    return known


def _part(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = record.get(name)
    return part if isinstance(part, dict) else {}


def _is_hook(name: str) -> bool:
    """Whether a name can be a folder's: parts of letters, digits and underscores, with dots between."""
    return all(part.isidentifier() or part.isdecimal() for part in name.split("."))


def _evaluation(path: Path) -> SaeReport | None:
    if not path.exists():
        return None
    try:
        return SaeReport.from_json(path.read_text(encoding="utf-8"))
    except HookedWhisperError as error:
        raise PublishError(f"{path} cannot be published: {error}") from error


def _figures(report: SaeReport) -> dict[str, float]:
    """The headline figures of a report."""
    whole = report.overall
    loss = whole.on_transcript
    rates = whole.transcripts
    found = {
        "fvu": whole.reconstruction.fvu.value,
        "l0": whole.reconstruction.l0.value,
        "dead_latents": whole.firing.silent,
        "cross_entropy_recovered": None if loss is None else loss.recovered_from_zero.value,
        "kl": None if loss is None else loss.kl.value,
        "wer_to_unhooked": None if rates is None else rates.wer_to_unhooked.value,
    }
    return {name: value for name, value in found.items() if value is not None}


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError as error:
        raise PublishError(str(error)) from error


def _folders(files: list[str]) -> set[str]:
    """Folders with an SAE in them."""
    return {file.removesuffix(f"/{CONFIG}") for file in files if file.endswith(f"/{CONFIG}")}
