"""Sparse autoencoders that others have trained on Whisper, as SAELens's SAEs.

AudioSAE (Aparin et al. 2026, arXiv:2602.05027; hub repositories Egorgij21/Audio-SAE-*) keeps one
`layer_n/ae.pt` for each encoder layer, the state of a BatchTopK SAE of the library dictionary_learning:

    f = relu(W_e (x - b_dec) + b_e),  f = 0 where f <= threshold,  x' = W_d f + b_dec

FREUD (Sadov 2024, github.com/ksadov/whisper-interp; hub repositories cherrvak/*) keeps checkpoints of training, of two
kinds. "l1" ties its weights, with columns of W brought to length one:

    f = relu(W^T x + b),  x' = W f

and "topk" keeps the k largest values of each frame:

    f = top_k(relu(W_e (x - b_dec) + b_e)),  x' = f W_dec + b_dec
"""

from __future__ import annotations

import hashlib
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

import hooked_whisper
from hooked_whisper.errors import CheckpointError, SaeError
from hooked_whisper.hub import SHORT_NAMES
from hooked_whisper.huggingface import read_json
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.saes.hub_files import fetch_file, is_repository, list_files
from hooked_whisper.saes.saelens import import_saelens
from hooked_whisper.torch_files import (
    _ALLOWED_GLOBALS,
    _FORBIDDEN_OPCODES,
    _MALFORMED,
    MAX_PICKLE_BYTES,
    load_torch_file,
)

if TYPE_CHECKING:
    from sae_lens import SAE

_LAYER = re.compile(r"layer_(\d+)")
_AUDIOSAE_KEYS = ("encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k")

# FREUD's checkpoints hold the best validation loss as a numpy scalar. It is not wanted, and nothing of numpy is run:
# these names, of both generations of numpy, stand for stand-ins.
_NUMPY_GLOBALS = {
    "numpy dtype",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "_codecs encode",
}
# The modules of OpenAI's Whisper inside a block, and the hooks that hold what they put out.
_IN_ENCODER = {"attn_ln": "ln1.hook_normalized", "mlp_ln": "ln2.hook_normalized"}
_IN_DECODER = {
    "attn_ln": "ln1.hook_normalized",
    "cross_attn_ln": "ln2.hook_normalized",
    "mlp_ln": "ln3.hook_normalized",
    "cross_attn.query": "cross_attn.hook_q",
    "cross_attn.key": "cross_attn.hook_k",
    "cross_attn.value": "cross_attn.hook_v",
    "cross_attn.out": "hook_cross_attn_out",
}
_IN_BOTH = {
    "": "hook_resid_post",
    "attn.query": "attn.hook_q",
    "attn.key": "attn.hook_k",
    "attn.value": "attn.hook_v",
    "attn.out": "hook_attn_out",
    "mlp.0": "mlp.hook_pre",
    "mlp.1": "mlp.hook_post",
    "mlp.2": "hook_mlp_out",
    "mlp": "hook_mlp_out",
}
_OUTSIDE = {
    "encoder": "encoder.hook_out",
    "encoder.ln_post": "encoder.hook_out",
    "decoder.ln": "decoder.ln_final.hook_normalized",
}


def import_audiosae(
    source: str | os.PathLike[str],
    *,
    layer: int | None = None,
    model: str | None = None,
    activation: Literal["threshold", "topk"] = "threshold",
    threshold: float | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> SAE[Any]:
    """An SAE of AudioSAE's as SAELens's JumpReLU SAE (or TopK SAE), at `encoder.blocks.{layer - 1}.hook_resid_post`.

    Args:
        source: a hub repository such as "Egorgij21/Audio-SAE-Whisper-small", a folder with `layer_n` folders, one of
            these, or an `ae.pt`.
        layer: which encoder layer, counted from 1 as AudioSAE does: the output of the n-th block. None takes it from
            the name of the folder.
        model: the Whisper that it was trained on; None takes it from the repository's name or the file `config.json`.
        activation: "threshold" keeps features above the threshold, as AudioSAE does after training; "topk" keeps k
            features of each frame, where a file has no threshold. (In training k is an average over a batch: that
            makes a frame's features depend on its neighbours in the batch, so it is not offered.)
        threshold: to use in the place of the stored one.
        revision, local_files_only: of a hub repository.

    Raises:
        SaeError: nothing there, a file that is truncated, hostile or of another format, an SAE that is not for
            Whisper, or what is not said and cannot be known.
    """
    if activation not in ("threshold", "topk"):
        raise SaeError(f"Unknown activation {activation!r}: expected 'threshold' or 'topk'.")
    path, settings, layer = _find_audiosae(source, layer, revision, local_files_only)
    state = _loaded(path)
    unknown = [
        name for name in (state if isinstance(state, dict) else ()) if name not in (*_AUDIOSAE_KEYS, "threshold")
    ]
    if not isinstance(state, dict) or not set(_AUDIOSAE_KEYS) <= set(state) or unknown:
        found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
        raise SaeError(f"{path} is no SAE of AudioSAE's: expected {', '.join(_AUDIOSAE_KEYS)}, found {found}.")
    d_sae, d_in = _shape(state, "encoder.weight", 2, path)
    _check_shapes(path, state, {"encoder.bias": (d_sae,), "decoder.weight": (d_in, d_sae), "b_dec": (d_in,), "k": ()})
    k = int(state["k"])
    if not 0 < k <= d_sae:
        raise SaeError(f"{path} says that k is {k}: expected 1 to {d_sae}.")
    weights = {
        "W_enc": state["encoder.weight"].T,
        "b_enc": state["encoder.bias"],
        "W_dec": state["decoder.weight"].T,
        "b_dec": state["b_dec"],
    }
    about = {
        "model_name": _whisper(model or _named_in(str(source)) or _part(settings, "trainer").get("lm_name"), path),
        "hook_name": f"encoder.blocks.{layer - 1}.hook_resid_post",
        "k": k,
        "source_format": "AudioSAE",
        "training_settings": settings,
    }
    if activation == "topk":
        return _sae("topk", weights, {"k": k}, about, path)
    if threshold is None:
        if "threshold" not in state:
            raise SaeError(
                f"{path} holds no threshold, so it does not tell which features of a frame count after training: pass "
                f"threshold=, or activation='topk' to keep {k} of each frame."
            )
        _check_shapes(path, state, {"threshold": ()})
        threshold = float(state["threshold"])
    # Below zero means "never set" there, and then everything that is positive counts.
    weights["threshold"] = torch.full((d_sae,), max(threshold, 0.0))
    return _sae("jumprelu", weights, {}, about, path)


def import_freud(
    source: str | os.PathLike[str],
    *,
    filename: str | None = None,
    model: str | None = None,
    revision: str | None = None,
    local_files_only: bool = False,
) -> SAE[Any]:
    """An SAE of FREUD's as SAELens's standard ("l1") or TopK SAE, at the hook that holds its layer's output.

    Args:
        source: a hub repository such as "cherrvak/topkautoencoder_baseline", a folder, or a checkpoint `.pth`.
        filename: which checkpoint of a repository or folder; None takes `bestval.pth`, or the only one.
        model: the Whisper that it was trained on; None takes what the checkpoint says.
        revision, local_files_only: of a hub repository.

    Raises:
        SaeError: nothing there, a file that is truncated, hostile or of another format, a layer whose output no hook
            holds, or what is not said and cannot be known.
    """
    path = _find_freud(source, filename, revision, local_files_only)
    checkpoint = _loaded_checkpoint(path)
    state, settings = _freud_parts(checkpoint, path)
    whisper = _part(settings, "whisper_config")
    kind = settings.get("autoencoder_variant", "topk" if "W_dec" in state else "l1")
    about = {
        "model_name": _whisper(model or whisper.get("model"), path),
        "hook_name": hook_of_module(whisper.get("layer_name")),
        "source_format": f"FREUD {kind}",
        "training_settings": settings,
        "training_step": checkpoint.get("step"),
    }
    if kind == "l1":
        d_in, d_sae = _shape(state, "decoder.weight", 2, path)
        _check_shapes(path, state, {"encoder_bias": (d_sae,)})
        columns = F.normalize(state["decoder.weight"].float(), dim=0)
        weights = {"W_enc": columns, "b_enc": state["encoder_bias"], "W_dec": columns.T, "b_dec": torch.zeros(d_in)}
        return _sae("standard", weights, {"apply_b_dec_to_input": False}, about, path)
    if kind != "topk":
        raise SaeError(f"{path} is an autoencoder of the kind {kind!r}: expected 'l1' or 'topk'.")
    d_sae, d_in = _shape(state, "encoder.weight", 2, path)
    _check_shapes(path, state, {"encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)})
    k = _part(settings, "autoencoder_config").get("k")
    if not isinstance(k, int) or not 0 < k <= d_sae:
        raise SaeError(f"{path} does not say how many features of a frame count: k is {k!r}, expected 1 to {d_sae}.")
    weights = {
        "W_enc": state["encoder.weight"].T,
        "b_enc": state["encoder.bias"],
        "W_dec": state["W_dec"],
        "b_dec": state["b_dec"],
    }
    return _sae("topk", weights, {"k": k}, {**about, "k": k}, path)


def hook_of_module(module: str | None) -> str:
    """The hook that holds the output of a module of OpenAI's Whisper, such as "encoder.blocks.2" or "….mlp.1".

    Raises:
        SaeError: a module whose output is no hook's.
    """
    named = str(module)
    if named in _OUTSIDE:
        return _OUTSIDE[named]
    block = re.fullmatch(r"(encoder|decoder)\.blocks\.(\d+)(?:\.(.+))?", named)
    if block is not None:
        inside = {**_IN_BOTH, **(_IN_ENCODER if block[1] == "encoder" else _IN_DECODER)}
        leaf = inside.get(block[3] or "")
        if leaf is not None:
            return f"{block[1]}.blocks.{block[2]}.{leaf}"
    raise SaeError(
        f"The autoencoder was trained on {module!r} of OpenAI's Whisper, whose output no hook holds: expected a block, "
        "such as 'encoder.blocks.2', or one of its parts, such as 'encoder.blocks.2.mlp.1'."
    )


# Finding the file


def _find_audiosae(
    source: str | os.PathLike[str], layer: int | None, revision: str | None, local_files_only: bool
) -> tuple[Path, dict[str, Any], int]:
    """The weights, the settings beside them, and the layer."""
    path = Path(source)
    if not path.exists():
        repository = _repository(source, "Egorgij21/Audio-SAE-Whisper-small")
        if layer is None:
            raise SaeError(f"Which layer of {repository!r}? Pass layer=, counted from 1.")
        names = list_files(repository, revision, local_files_only=local_files_only)
        path = _one_layer(repository, [name for name in names if name.endswith("/ae.pt")], layer)
        settings = f"{path.parent.as_posix()}/config.json"
        fetched = fetch_file(repository, path.as_posix(), revision, local_files_only=local_files_only)
        if settings in names:
            fetch_file(repository, settings, revision, local_files_only=local_files_only)
        path = fetched
    elif path.is_dir() and not (path / "ae.pt").exists():
        found = [file.relative_to(path).as_posix() for file in path.glob("layer_*/ae.pt")]
        path = path / _one_layer(str(path), found, layer)
    elif path.is_dir():
        path = path / "ae.pt"
    in_name = _LAYER.fullmatch(path.absolute().parent.name)
    if layer is None and in_name is not None:
        layer = int(in_name[1])
    if layer is None or layer < 1:
        raise SaeError(f"Which layer is {path} of? Pass layer=, counted from 1; got {layer!r}.")
    if in_name is not None and int(in_name[1]) != layer:
        raise SaeError(f"{path} is of layer {in_name[1]} by its name, and layer={layer} was given.")
    config = path.parent / "config.json"
    return path, _settings(config) if config.exists() else {}, layer


def _one_layer(where: str, found: list[str], layer: int | None) -> Path:
    layers = sorted(int(match[1]) for name in found if (match := re.fullmatch(r"layer_(\d+)/ae\.pt", name)))
    if not layers:
        raise SaeError(f"{where!r} is not laid out as AudioSAE's: expected layer_1/ae.pt and so on.")
    if layer is None and len(layers) == 1:
        layer = layers[0]
    if layer not in layers:
        raise SaeError(f"{where!r} has the layers {', '.join(map(str, layers))}; layer={layer!r} was asked for.")
    return Path(f"layer_{layer}/ae.pt")


def _find_freud(
    source: str | os.PathLike[str], filename: str | None, revision: str | None, local_files_only: bool
) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        names = sorted(file.relative_to(path).as_posix() for file in path.rglob("*.pth"))
        return path / _one_checkpoint(str(path), names, filename)
    repository = _repository(source, "cherrvak/topkautoencoder_baseline")
    names = [
        name for name in list_files(repository, revision, local_files_only=local_files_only) if name.endswith(".pth")
    ]
    chosen = _one_checkpoint(repository, names, filename)
    return fetch_file(repository, chosen, revision, local_files_only=local_files_only)


def _one_checkpoint(where: str, names: list[str], filename: str | None) -> str:
    wanted = filename or "bestval.pth"
    fitting = [name for name in names if name == wanted or (filename is None and Path(name).name == wanted)]
    if not fitting and filename is None and len(names) == 1:
        fitting = names
    if len(fitting) != 1:
        has = ", ".join(names[:12]) or "no .pth at all"
        raise SaeError(f"{where!r} has {has}: name one with filename=.")
    return fitting[0]


def _repository(source: str | os.PathLike[str], example: str) -> str:
    if not isinstance(source, str) or not is_repository(source):
        raise SaeError(
            f"There is no {str(source)!r}: expected a file, a folder, or a hub repository such as {example!r}."
        )
    return source


# Reading it


def _settings(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except CheckpointError as error:
        raise SaeError(str(error)) from error


def _loaded(path: Path) -> Any:
    try:
        return load_torch_file(path)
    except CheckpointError as error:
        raise SaeError(str(error)) from error


class _StandIn:
    """What a numpy object in a checkpoint is read as: nothing."""

    def __init__(self, *ignored: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_ins() -> list[Any]:
    names = [name.rpartition(" ") for name in sorted(_NUMPY_GLOBALS)]
    return [type(leaf, (_StandIn,), {"__module__": module, "__qualname__": leaf}) for module, _, leaf in names]


def _loaded_checkpoint(path: Path) -> dict[str, Any]:
    """A training checkpoint: tensors, plain values, and numpy scalars, which are left out. Nothing in it is run."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            total = sum(entry.file_size for entry in entries)
            if len(pickles) != 1 or not stored or total > path.stat().st_size:
                raise SaeError(f"{path} is no file that torch.save writes: it is compressed, or has no one data.pkl.")
            if pickles[0].file_size > MAX_PICKLE_BYTES:
                raise SaeError(f"{path} holds a pickle of {pickles[0].file_size:,} bytes: that is no checkpoint.")
            for opcode, argument, _ in pickletools.genops(archive.read(pickles[0])):
                foreign = opcode.name == "GLOBAL" and argument not in _ALLOWED_GLOBALS | _NUMPY_GLOBALS
                if foreign or opcode.name in _FORBIDDEN_OPCODES:
                    raise SaeError(
                        f"{path} holds code or objects ({argument or opcode.name}), not only tensors, and was not "
                        "loaded. FREUD also saves whole models, which cannot be read safely: take a checkpoint `.pth`."
                    )
        with torch.serialization.safe_globals(_stand_ins()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except SaeError:
        raise
    except (zipfile.BadZipFile, *_MALFORMED) as error:
        raise SaeError(
            f"{path} cannot be read ({error}): it is truncated, corrupt, or no checkpoint of torch 1.6 or newer."
        ) from error
    if not isinstance(checkpoint, dict):
        raise SaeError(f"{path} holds a {type(checkpoint).__name__}, expected a checkpoint of FREUD's, a dictionary.")
    return checkpoint


def _freud_parts(checkpoint: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    state, settings = checkpoint.get("model"), checkpoint.get("hparams")
    if not isinstance(state, dict) or not isinstance(settings, dict):
        raise SaeError(
            f"{path} is no checkpoint of FREUD's: expected 'model' and 'hparams', found {sorted(map(str, checkpoint))}."
        )
    return dict(state), settings


def _part(settings: dict[str, Any], name: str) -> dict[str, Any]:
    part = settings.get(name)
    return part if isinstance(part, dict) else {}


def _shape(state: dict[str, Any], name: str, rank: int, path: Path) -> tuple[int, ...]:
    value = state.get(name)
    if not isinstance(value, Tensor) or value.ndim != rank:
        found = list(value.shape) if isinstance(value, Tensor) else value
        raise SaeError(f"{path} has no matrix {name!r}: found {found}.")
    return tuple(value.shape)


def _check_shapes(path: Path, state: dict[str, Any], expected: dict[str, tuple[int, ...]]) -> None:
    for name, shape in expected.items():
        value = state.get(name)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = list(value.shape) if isinstance(value, Tensor) else value
            raise SaeError(f"{path} has {name!r} of shape {found}, expected {list(shape)}.")


# What it is of


def _named_in(source: str) -> str | None:
    """The model that the name of a repository or folder of AudioSAE's ends in."""
    match = re.search(r"audio-sae-([\w.-]+)", source, re.IGNORECASE)
    return None if match is None else match[1].removesuffix("/")


def _whisper(name: object, path: Path) -> str:
    """The hub's name of a Whisper that was named somehow."""
    if not isinstance(name, str) or not name:
        raise SaeError(
            f"{path} does not say which Whisper it was trained on: pass model=, such as 'openai/whisper-small'."
        )
    short = name.lower()
    if "hubert" in short:
        raise SaeError(f"{path} was trained on {name}, which is no Whisper.")
    return SHORT_NAMES.get(short.rpartition("/")[2], name)


def _sae(
    architecture: str, weights: dict[str, Tensor], settings: dict[str, Any], about: dict[str, Any], path: Path
) -> SAE[Any]:
    """A SAELens SAE of these weights, in float32 on the CPU, with where it comes from."""
    for name, value in weights.items():
        if not bool(torch.isfinite(value).all()):
            raise SaeError(f"{path} holds values that are NaN or infinite (in what becomes {name}).")
    sae_lens = import_saelens()
    metadata = sae_lens.saes.sae.SAEMetadata(
        **about,
        frame_rate=FRAMES_PER_SECOND,
        source=path.name if path.parent == Path() else f"{path.parent.name}/{path.name}",
        source_sha256=_sha256(path),
        hooked_whisper_version=hooked_whisper.__version__,
    )
    cls, config = sae_lens.registry.get_sae_class(architecture)
    d_in, d_sae = weights["W_enc"].shape
    sae = cls(config(d_in=d_in, d_sae=d_sae, metadata=metadata, **settings))
    sae.load_state_dict({name: value.float().contiguous() for name, value in weights.items()})
    return sae


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()
