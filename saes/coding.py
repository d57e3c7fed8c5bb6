"""Any SAELens SAE as one function from rows to activations and reconstructions, and where in a model it belongs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.axes import axes
from hooked_whisper.errors import SaeError, did_you_mean

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper

# What one batch of rows may take as dense activations: 64 MB in float32.
_MAX_ACTIVATIONS = 2**24
# Their reconstruction is more than what they decode: predicted codes, or a linear path past the dictionary.
_MORE_THAN_DECODED = ("temporal", "skip_transcoder", "jumprelu_skip_transcoder")
# Training classes whose activations depend on the rest of the batch; their inference format is JumpReLU.
_BATCH_DEPENDENT = ("batchtopk", "matryoshka_batchtopk")
_POSITION_AXES = ("frame", "mel_frame", "key_frame", "pos")


if TYPE_CHECKING:

    class SparseCoder(Protocol):
        """What evaluation needs of an SAE: SAELens's classes have it, and so have the baselines."""

        cfg: Any  # with d_in, d_sae and architecture()
        W_dec: Any  # [d_sae d_out]

        def encode(self, x: Tensor, /) -> Tensor: ...

        def decode(self, feature_acts: Tensor, /) -> Tensor: ...
else:
    SparseCoder = Any  # a parameter of a module is no attribute that a run-time check of protocols finds


@dataclass(frozen=True)
class Site:
    """Where an SAE reads and writes.

    Attributes:
        read: the hook whose activation it encodes.
        write: the hook that its output stands for; the same unless it is a transcoder.
        positions: what its rows run over: "frame" (20 ms), "mel_frame" (10 ms) or "pos" (decoder tokens).
    """

    read: str
    write: str
    positions: str

    @property
    def in_decoder(self) -> bool:
        """Whether reading it takes a text."""
        return self.read.startswith("decoder.") or self.write.startswith("decoder.")


def find_site(model: HookedWhisper, sae: SparseCoder, hook: str | None = None) -> Site:
    """The hooks of an SAE: `hook`, or those that its metadata names.

    Raises:
        SaeError: no hook known, a hook that the model does not have or whose positions are no rows, a width that is
            not the SAE's, or a training SAE whose activations depend on the batch.
    """
    check_coder(sae)
    metadata = sae.cfg.metadata
    read = hook or metadata.hook_name
    if read is None:
        raise SaeError("This SAE's metadata names no hook: pass hook=, such as hook='encoder.hook_out'.")
    write = metadata.hook_name_out if hook is None and metadata.hook_name_out is not None else read
    if is_transcoder(sae):
        write = metadata.hook_name_out
        if write is None:
            raise SaeError(
                f"This {sae.cfg.architecture()} reads one hook and writes another, and its metadata does not name the "
                "second: set sae.cfg.metadata.hook_name_out."
            )
    for name in {read, write}:
        if name not in model.hook_dict:
            near = did_you_mean(name, model.hook_dict)
            raise SaeError(f"This SAE belongs at {name!r}, which {model.cfg.model_name} does not have.{near}")
    positions = {hook_positions(name) for name in (read, write)}
    if len(positions) > 1:
        raise SaeError(f"{read!r} and {write!r} run over different positions ({', '.join(sorted(positions))}).")
    width = hook_width(model, read)
    if width != sae.cfg.d_in:
        raise SaeError(
            f"This SAE reads rows of {sae.cfg.d_in}, and {read!r} of {model.cfg.model_name} has rows of {width}: "
            "it was made for another hook or another model."
        )
    written = hook_width(model, write)
    if sae.W_dec.shape[1] != written:
        raise SaeError(
            f"This SAE writes rows of {sae.W_dec.shape[1]}, and {write!r} of {model.cfg.model_name} has rows of "
            f"{written}: it was made for another hook or another model."
        )
    return Site(read, write, positions.pop())


def check_coder(sae: SparseCoder) -> None:
    """Raises SaeError for a training SAE whose activations at one row depend on the rest of the batch."""
    if sae.cfg.architecture() in _BATCH_DEPENDENT:
        raise SaeError(
            f"A live {sae.cfg.architecture()} SAE chooses its latents over the whole batch, so what it says of a row "
            "depends on the others. Evaluate what it is saved as for use: sae.save_inference_model(folder), then "
            "load_sae(folder)."
        )


def is_transcoder(sae: SparseCoder) -> bool:
    """True for SAELens's transcoders, which read one hook and write another."""
    return "transcoder" in sae.cfg.architecture()


def hook_positions(hook: str) -> str:
    """What rows of `hook` run over, as in `Site`.

    Raises:
        SaeError: it has none.
    """
    names = axes(hook)
    if len(names) < 3 or names[0] != "batch" or names[1] not in _POSITION_AXES:
        raise SaeError(f"{hook!r} has axes {', '.join(names)}: an SAE needs [batch, position, ...].")
    return "frame" if names[1] == "key_frame" else names[1]


def row_shape(model: HookedWhisper, hook: str) -> tuple[int, ...]:
    """Shape of one row of `hook`: (width,), or (heads, width of one)."""
    stack = model.cfg.encoder if hook.startswith("encoder.") else model.cfg.decoder
    sizes = {
        "d_model": stack.d_model, "d_mlp": stack.d_mlp, "head": stack.n_heads, "d_head": stack.d_head,
        "vocab": model.cfg.d_vocab, "1": 1,
    }  # fmt: skip
    return tuple(sizes[name] for name in axes(hook)[2:])


def hook_width(model: HookedWhisper, hook: str) -> int:
    """Width of one row of `hook`, heads laid side by side."""
    return math.prod(row_shape(model, hook))


def code(sae: SparseCoder, rows: Float[Tensor, "row *width"]) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Batches of (which rows, activations [row d_sae], reconstructions [row d_out]) of one clip's rows, in order.

    The SAE sees rows in its own dtype and on its own device, heads side by side unless it lays them so itself; an error
    term that it may have switched on is left out. Batches keep dense activations below 64 MB, but a temporal SAE, which
    looks back in time, gets the whole clip.
    """
    temporal = sae.cfg.architecture() == "temporal"
    step = len(rows) if temporal else max(1, _MAX_ACTIVATIONS // sae.cfg.d_sae)
    wanted = rows if sae.cfg.reshape_activations == "hook_z" else rows.flatten(1)
    for at in range(0, len(rows), max(step, 1)):
        part = slice(at, min(at + step, len(rows)))
        with torch.no_grad():  # not around the whole, which would hold between two batches, too
            x = wanted[part].to(sae.W_dec.device, sae.W_dec.dtype)[None]
            acts = sae.encode(x)
            more = sae.cfg.architecture() in _MORE_THAN_DECODED
            out = sae(x) if more else sae.decode(acts)  # type: ignore[operator]
        yield part, acts[0], out[0].flatten(1)


def reconstruct(sae: SparseCoder, rows: Float[Tensor, "row *width"]) -> Float[Tensor, "row d_out"]:
    """Reconstructions of one clip's rows, in their dtype and on their device, heads side by side."""
    parts = [out for _, _, out in code(sae, rows)]
    found = torch.cat(parts) if parts else torch.empty(0, sae.W_dec.shape[1])
    return found.to(rows.device, rows.dtype)
