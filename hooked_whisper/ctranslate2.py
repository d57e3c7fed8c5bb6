"""Reads CTranslate2's model.bin, the format of faster-whisper, without CTranslate2.

The file is little-endian throughout:

    u32 binary version; string specification; u32 revision; u32 number of variables, then for each variable
        string name; u8 rank; rank x u32 dimensions; u8 dtype; u32 bytes; the bytes
    u32 number of aliases, then for each alias: string alias; string name of the variable it stands for

A string is a u16 length that counts a closing zero byte, then the bytes. Binary versions before 4 store the size
of an item in place of the dtype, and the number of items in place of the number of bytes; before 3 there are no
aliases. (Layout: CTranslate2's `model_spec.py` and `model.cc`.)

Nothing in the file is believed: each length is compared with what is left of the file before it is used, and the
tensors are views of the mapped file until they are converted.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hooked_whisper.config import HookedWhisperConfig, StackConfig
from hooked_whisper.errors import CheckpointError, ConfigError

BINARY_VERSIONS = range(2, 7)
WHISPER_SPECIFICATION = "WhisperSpec"
WHISPER_REVISIONS = range(1, 4)

DTYPES = (torch.float32, torch.int8, torch.int16, torch.int32, torch.float16, torch.bfloat16)
ITEM_SIZE_DTYPES = {4: torch.float32, 2: torch.int16, 1: torch.int8}  # binary versions 2 and 3

# Far above what a Whisper needs (large has about 1,500 variables, of rank 3 at most): a file that claims more is
# hostile, and would cost an object for every few bytes.
MAX_VARIABLES = 50_000
MAX_RANK = 4

# Aliases let a few bytes of file stand for many tensors. A converted model may take this much more than its file.
MAX_EXPANSION = 16
FREE_BYTES = 256 * 2**20

# int16 weights without a saved scale use this one.
DEFAULT_INT16_SCALE = 1000.0

GELU = 3  # CTranslate2's number of the exact GELU


class _Reader:
    """A cursor over bytes that may come in pieces; every read is checked against what is left."""

    def __init__(self, pieces: Sequence[memoryview], name: str) -> None:
        self.pieces = pieces
        self.name = name
        self.size = sum(len(piece) for piece in pieces)
        self.position = 0

    def take(self, n_bytes: int, what: str) -> memoryview:
        """The next `n_bytes` bytes; a copy only where they straddle two pieces."""
        left = self.size - self.position
        if n_bytes > left:
            raise CheckpointError(
                f"{self.name} is truncated or corrupt: at byte {self.position} it announces {n_bytes} bytes of {what}, "
                f"but {left} are left of {self.size}. Download or convert it again."
            )
        start = self.position
        self.position += n_bytes
        for piece in self.pieces:
            if start + n_bytes <= len(piece):
                return piece[start : start + n_bytes]
            if start < len(piece):
                break
            start -= len(piece)
        return memoryview(b"".join(self._fragments(self.position - n_bytes, self.position)))

    def _fragments(self, start: int, stop: int) -> Iterator[memoryview]:
        for piece in self.pieces:
            if start < len(piece) and stop > 0:
                yield piece[max(start, 0) : stop]
            start -= len(piece)
            stop -= len(piece)

    def number(self, code: str, what: str) -> int:
        """One little-endian unsigned number, `code` being struct's "B", "H" or "I"."""
        (value,) = struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))
        return value

    def string(self, what: str) -> str:
        raw = bytes(self.take(self.number("H", f"the length of {what}"), what))
        if not raw.endswith(b"\0"):
            raise CheckpointError(
                f"{self.name} is corrupt: {what} at byte {self.position - len(raw)} does not end with a zero byte."
            )
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.name} is corrupt: {what} is not UTF-8: {raw[:40]!r}.") from error


@dataclass
class CTranslate2Model:
    """A parsed model.bin.

    Args:
        specification: what kind of model it is, "WhisperSpec" for Whisper.
        revision: of that specification.
        binary_version: of the file's layout.
        variables: tensors by name, as stored (views of the file), aliases resolved.
        n_bytes: size of the file.
        name: what to call it in messages.
    """

    specification: str
    revision: int
    binary_version: int
    variables: dict[str, Tensor]
    n_bytes: int
    name: str


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped and never written back.

    Raises:
        CheckpointError: the file is missing, unreadable or empty.
    """
    try:
        with path.open("rb") as file:
            # A private, writable mapping: torch warns about read-only memory.
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    except OSError as error:
        raise CheckpointError(f"Cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is empty. Download or convert it again.") from error


def parse_model(source: Path | Sequence[memoryview], name: str | None = None) -> CTranslate2Model:
    """Parses a model.bin, checking each length before it is used.

    Args:
        source: the file, or its content in consecutive pieces.
        name: what to call it in messages; the path by default.

    Raises:
        CheckpointError: truncated, corrupt or hostile bytes, or a newer version of the format.
    """
    pieces = [map_file(source)] if isinstance(source, Path) else source
    reader = _Reader(pieces, name or str(source if isinstance(source, Path) else "model.bin"))
    version = reader.number("I", "the binary version")
    if version not in BINARY_VERSIONS:
        raise CheckpointError(
            f"{reader.name} has binary version {version}, expected {BINARY_VERSIONS[0]} to {BINARY_VERSIONS[-1]}. "
            "It is not a CTranslate2 model, or one that a later CTranslate2 wrote."
        )
    specification = reader.string("the specification's name")
    revision = reader.number("I", "the revision")
    variables: dict[str, Tensor] = {}
    for _ in range(_count(reader, "variables")):
        variable, tensor = _read_variable(reader, version)
        if variable in variables:
            raise CheckpointError(f"{reader.name} is corrupt: it holds the variable {variable!r} twice.")
        variables[variable] = tensor
    if version >= 3:
        for _ in range(_count(reader, "aliases")):
            alias, target = reader.string("an alias"), reader.string("the target of an alias")
            if alias in variables or target not in variables:
                what = "is already a variable" if alias in variables else f"stands for {target!r}, which is not there"
                raise CheckpointError(f"{reader.name} is corrupt: the alias {alias!r} {what}.")
            variables[alias] = variables[target]
            if f"{target}_scale" in variables:
                variables.setdefault(f"{alias}_scale", variables[f"{target}_scale"])
    if reader.position != reader.size:
        raise CheckpointError(
            f"{reader.name} is corrupt: {reader.size - reader.position} bytes follow its end at byte {reader.position}."
        )
    return CTranslate2Model(specification, revision, version, variables, reader.size, reader.name)


def _count(reader: _Reader, what: str) -> int:
    count = reader.number("I", f"the number of {what}")
    if count > MAX_VARIABLES:
        raise CheckpointError(
            f"{reader.name} is corrupt: it announces {count} {what}, and no Whisper has more than {MAX_VARIABLES}."
        )
    return count


def _read_variable(reader: _Reader, version: int) -> tuple[str, Tensor]:
    """Name and tensor of the variable at the cursor."""
    name = reader.string("a variable's name")
    rank = reader.number("B", f"the rank of {name!r}")
    if rank > MAX_RANK:
        raise CheckpointError(
            f"{reader.name} is corrupt: variable {name!r} has rank {rank}, expected at most {MAX_RANK}."
        )
    shape = [reader.number("I", f"a dimension of {name!r}") for _ in range(rank)]
    code = reader.number("B", f"the dtype of {name!r}")
    count = reader.number("I", f"the size of {name!r}")
    if version >= 4:
        dtype = DTYPES[code] if code < len(DTYPES) else None
    else:
        dtype = ITEM_SIZE_DTYPES.get(code)
    if dtype is None:
        raise CheckpointError(f"{reader.name} is corrupt: variable {name!r} has the unknown dtype {code}.")
    n_bytes = count if version >= 4 else count * code
    if n_bytes == 0 or n_bytes != math.prod(shape) * dtype.itemsize:
        raise CheckpointError(
            f"{reader.name} is corrupt: variable {name!r} of shape {tuple(shape)} and {dtype} takes "
            f"{math.prod(shape) * dtype.itemsize} bytes, and the file announces {n_bytes}."
        )
    raw = reader.take(n_bytes, f"variable {name!r}")
    # A read-only view (of bytes that straddle two pieces, or are given as such) would make torch warn.
    buffer = bytearray(raw) if raw.readonly else raw
    return name, torch.frombuffer(buffer, dtype=dtype).view(shape)


def _dequantised(variables: Mapping[str, Tensor], name: str) -> Tensor:
    """A weight as floats: stored floats as they are, int8 and int16 divided by their scale.

    A scale is one number for all, or one for each row (the first axis), as CTranslate2 quantises.
    """
    weight = variables[name]
    if weight.is_floating_point():
        return weight
    scale = variables.get(f"{name}_scale")
    if scale is None and weight.dtype == torch.int16:
        scale = torch.tensor(DEFAULT_INT16_SCALE)
    if weight.dtype not in (torch.int8, torch.int16) or scale is None or not scale.is_floating_point():
        raise CheckpointError(
            f"Variable {name!r} has dtype {weight.dtype} and {'no' if scale is None else 'an unusable'} scale, "
            "expected floats, or int8 or int16 with floating scales."
        )
    if scale.numel() not in (1, weight.shape[0]) or scale.dim() > 1:
        raise CheckpointError(
            f"Variable '{name}_scale' has shape {tuple(scale.shape)}, expected one number, or one for each of the "
            f"{weight.shape[0]} rows of {name!r}."
        )
    if not (torch.isfinite(scale).all() and (scale != 0).all()):
        raise CheckpointError(f"Variable '{name}_scale' holds zeros or numbers that are not finite.")
    rows = scale.float().reshape(-1, *[1] * (weight.dim() - 1)) if scale.numel() > 1 else scale.float().reshape(())
    return weight.float() / rows


class _Variables:
    """The variables of a Whisper, by name, each looked up once; what nobody asked for is unexpected."""

    def __init__(self, model: CTranslate2Model) -> None:
        self.model = model
        self.unused = {name for name in model.variables if name.removesuffix("_scale") not in model.variables} | {
            name for name in model.variables if not name.endswith("_scale")
        }

    def shape(self, name: str, *shape: int | None) -> torch.Size:
        """The shape of the tensor called `name`, which must fit; None fits any size."""
        if name not in self.model.variables:
            raise CheckpointError(
                f"{self.model.name} lacks the variable {name!r}. It is not a whole Whisper (encoder and decoder), "
                "or its conversion failed."
            )
        stored = self.model.variables[name]
        fits = len(shape) == stored.dim() and all(
            want in (None, have) for want, have in zip(shape, stored.shape, strict=True)
        )
        if not fits:
            expected = ", ".join("any" if size is None else str(size) for size in shape)
            raise CheckpointError(
                f"Variable {name!r} of {self.model.name} has shape {tuple(stored.shape)}, expected ({expected})."
            )
        return stored.shape

    def tensor(self, name: str, *shape: int | None) -> Tensor:
        """The (dequantised) tensor called `name`, whose shape must fit; None fits any size."""
        self.shape(name, *shape)
        self.unused.discard(name)
        return _dequantised(self.model.variables, name)

    def number(self, name: str, default: float | None = None) -> float:
        """The single number called `name`."""
        tensor = self.model.variables.get(name)
        self.unused.discard(name)
        if tensor is None and default is not None:
            return default
        if tensor is None or tensor.numel() != 1 or not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{self.model.name} has no usable number {name!r}: {tensor}. "
                "It is corrupt, or was converted by a CTranslate2 that is too old: convert it again."
            )
        return tensor.item()

    def layers(self, stack: str) -> int:
        """How many layers a stack has, numbered without gaps."""
        pattern = re.compile(rf"{stack}/layer_(0|[1-9][0-9]{{0,4}})/")
        numbers = {int(match[1]) for match in map(pattern.match, self.model.variables) if match}
        if numbers != set(range(len(numbers))):
            raise CheckpointError(
                f"{self.model.name} lacks layers of the {stack}: it has {len(numbers)}, numbered up to {max(numbers)}."
            )
        return len(numbers)


def whisper_from_ctranslate2(model: CTranslate2Model, name: str) -> tuple[HookedWhisperConfig, dict[str, Tensor]]:
    """Configuration, and tensors under transformers' names, of a CTranslate2 Whisper.

    The tensors are views of the file where it stores floats; int8 and int16 become float32.

    Raises:
        CheckpointError: not a Whisper, missing or unexpected variables, wrong shapes.
    """
    if model.specification != WHISPER_SPECIFICATION or model.revision not in WHISPER_REVISIONS:
        raise CheckpointError(
            f"{model.name} holds a model of kind {model.specification!r}, revision {model.revision}; expected "
            f"{WHISPER_SPECIFICATION!r}, revision {WHISPER_REVISIONS[0]} to {WHISPER_REVISIONS[-1]}."
        )
    variables = _Variables(model)
    config = _whisper_config(variables, name)
    _check_switches(variables, config)
    d = config.d_model
    state: dict[str, Tensor] = {}

    def linear(theirs: str, ours: str, n_out: int, n_in: int, *kernel: int) -> None:
        state[f"{ours}.weight"] = variables.tensor(f"{theirs}/weight", n_out, n_in, *kernel)
        state[f"{ours}.bias"] = variables.tensor(f"{theirs}/bias", n_out)

    def norm(theirs: str, ours: str) -> None:
        state[f"{ours}.weight"] = variables.tensor(f"{theirs}/gamma", d)
        state[f"{ours}.bias"] = variables.tensor(f"{theirs}/beta", d)

    def fused(theirs: str, ours: str, parts: str) -> None:
        """Projections stacked into one matrix; the keys' bias is stored, and is zero."""
        weights = variables.tensor(f"{theirs}/weight", len(parts) * d, d).chunk(len(parts))
        biases = variables.tensor(f"{theirs}/bias", len(parts) * d).chunk(len(parts))
        for part, weight, bias in zip(parts, weights, biases, strict=True):
            state[f"{ours}.{part}_proj.weight"] = weight
            if part != "k":
                state[f"{ours}.{part}_proj.bias"] = bias
            elif torch.count_nonzero(bias):
                raise CheckpointError(
                    f"Variable '{theirs}/bias' of {model.name} gives the keys a bias that is not zero, "
                    "which Whisper's attention does not have."
                )

    linear("encoder/conv1", "encoder.conv1", d, config.n_mels, 3)
    linear("encoder/conv2", "encoder.conv2", d, d, 3)
    state["decoder.embed_tokens.weight"] = variables.tensor("decoder/embeddings/weight", config.d_vocab, d)
    stored = model.variables
    if stored.get("decoder/projection/weight") is not stored["decoder/embeddings/weight"]:
        state["proj_out.weight"] = variables.tensor("decoder/projection/weight", config.d_vocab, d)
    variables.unused.discard("decoder/projection/weight")
    for stack in ("encoder", "decoder"):
        sizes = config.stack(stack)
        positions = variables.tensor(f"{stack}/position_encodings/encodings", sizes.n_ctx, d)
        state[f"{stack}.embed_positions.weight"] = positions
        norm(f"{stack}/layer_norm", f"{stack}.layer_norm")
        for i in range(sizes.n_layers):
            theirs, ours = f"{stack}/layer_{i}", f"{stack}.layers.{i}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            fused(f"{theirs}/self_attention/linear_0", f"{ours}.self_attn", "qkv")
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj", d, d)
            if stack == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                fused(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn", "q")
                fused(f"{theirs}/attention/linear_1", f"{ours}.encoder_attn", "kv")
                linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj", d, d)
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1", sizes.d_mlp, d)
            linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2", d, sizes.d_mlp)
    if variables.unused:
        some = ", ".join(sorted(variables.unused)[:5])
        raise CheckpointError(
            f"{model.name} holds {len(variables.unused)} variables that Whisper does not have: {some}. "
            "It was converted from another architecture, or by a later CTranslate2."
        )
    return config, state


def _whisper_config(variables: _Variables, name: str) -> HookedWhisperConfig:
    """Sizes as the variables' shapes tell them; the file stores no other."""
    d_vocab, d_model = variables.shape("decoder/embeddings/weight", None, None)
    n_mels = variables.shape("encoder/conv1/weight", d_model, None, 3)[1]
    stacks = {}
    for stack in ("encoder", "decoder"):
        n_layers = variables.layers(stack)
        feed_forward = f"{stack}/layer_0/ffn/linear_0/weight"
        try:
            stacks[stack] = StackConfig(
                n_layers=n_layers,
                n_heads=int(variables.number(f"{stack}/num_heads")),
                d_model=d_model,
                d_mlp=variables.shape(feed_forward, None, d_model)[0] if n_layers else 0,
                n_ctx=variables.shape(f"{stack}/position_encodings/encodings", None, d_model)[0],
            )
        except ConfigError as error:
            raise CheckpointError(f"The {stack} of {variables.model.name} is impossible: {error}") from error
    config = HookedWhisperConfig(**stacks, n_mels=n_mels, d_vocab=d_vocab, model_name=name)
    _check_expansion(config, variables.model)
    return config


def _check_expansion(config: HookedWhisperConfig, model: CTranslate2Model) -> None:
    """Refuses a file whose aliases stand for more memory than a model of that size could need."""
    per_layer = {
        stack: (8 if stack == "decoder" else 4) * config.d_model**2 + 2 * config.d_model * config.stack(stack).d_mlp
        for stack in ("encoder", "decoder")
    }
    n_bytes = 4 * sum(config.stack(stack).n_layers * size for stack, size in per_layer.items())
    if n_bytes > MAX_EXPANSION * model.n_bytes + FREE_BYTES:
        raise CheckpointError(
            f"{model.name} would grow from {model.n_bytes:,} bytes to {n_bytes:,} when loaded: its layers are aliases "
            "of a few variables, which no Whisper's are."
        )


def _check_switches(variables: _Variables, config: HookedWhisperConfig) -> None:
    """The file's architectural switches must say what Whisper does."""
    wanted = {
        "decoder/activation": GELU,
        "decoder/pre_norm": 1,
        "decoder/scale_embeddings": 0,
        "decoder/alibi": 0,
        "decoder/start_from_zero_embedding": 0,
        "encoder/activation": GELU,
        "encoder/pre_norm": 1,
    }
    for stack in ("encoder", "decoder"):
        sizes = config.stack(stack)
        for i in range(sizes.n_layers):
            for attention in ("self_attention", "attention"):
                wanted[f"{stack}/layer_{i}/{attention}/queries_scale"] = sizes.d_head**-0.5
    for name, value in wanted.items():
        given = variables.number(name, default=value)
        if not math.isclose(given, value, rel_tol=1e-3):
            raise CheckpointError(
                f"{variables.model.name} sets {name} = {given:g}, expected {value:g}: it does not compute what "
                "Whisper computes."
            )
    # Settings of CTranslate2's own aligner, which is not used here, and of ALiBi, which is off.
    variables.unused -= {"decoder/alignment_layer", "decoder/alignment_heads"}
    variables.unused -= {"decoder/alibi_use_positive_positions", "decoder/scale_alibi"}
