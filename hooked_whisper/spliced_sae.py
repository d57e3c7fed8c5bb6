"""One sparse autoencoder, or transcoder, in the place of one activation.

At every pass, under the name of the hook that is written:

    the activation -> hook_sae_input -> encoder -> hook_sae_acts_pre -> hook_sae_acts_post -> decoder -> hook_sae_recons
    hook_sae_recons (+ hook_sae_error) -> hook_sae_output -> the hook itself -> the rest of the model

The six points are the model's own and go with the SAE; hooks that sit on the SAE object itself fire before them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hooked_whisper.axes import axes
from hooked_whisper.components import ActivationPoint, see, see_kept
from hooked_whisper.config import HookedWhisperConfig
from hooked_whisper.errors import SaeError
from hooked_whisper.padding import Padding

if TYPE_CHECKING:
    from sae_lens import SAE

SAE_PREFIX = ".hook_sae_"
# In the order in which they fire.
INPUT, ACTS_PRE, ACTS_POST, RECONS, ERROR, OUTPUT = SAE_POINTS = (
    "hook_sae_input",
    "hook_sae_acts_pre",
    "hook_sae_acts_post",
    "hook_sae_recons",
    "hook_sae_error",
    "hook_sae_output",
)
# Points where an edit changes the reconstruction, so that the error must be that of a pass without hooks.
_BEFORE_ERROR = (INPUT, ACTS_PRE, ACTS_POST, RECONS)
# Architectures whose encoder has no values before its activation function.
_WITHOUT_ACTS_PRE = ("matching_pursuit",)


def checked_sae(sae: Any) -> SAE[Any]:
    """`sae`, if it is one that can be attached.

    Raises:
        SaeError: no SAE of SAELens, or one that is still in training.
    """
    # Whoever has an SAE has imported sae_lens; importing it here would cost all others five seconds.
    sae_lens: Any = sys.modules.get("sae_lens")
    if sae_lens is None or not isinstance(sae, sae_lens.SAE):
        raise SaeError(
            f"Expected an SAE or transcoder of SAELens, got {type(sae).__name__}: load one with "
            "hooked_whisper.saes.load_sae or sae_lens.SAE.from_pretrained."
        )
    if isinstance(sae, sae_lens.TrainingSAE):
        raise SaeError(
            f"{type(sae).__name__} is in training, and its pass is not the one that is used afterwards. Convert it: "
            "sae.save_inference_model(folder), then attach sae_lens.SAE.load_from_disk(folder)."
        )
    if sae.dtype != sae.W_dec.dtype:
        raise SaeError(
            f"The SAE says that it is {sae.dtype} and its weights are {sae.W_dec.dtype}: cast it with "
            "sae.to(dtype=...), which changes both."
        )
    return sae


@dataclass(frozen=True)
class Layout:
    """How the width of an SAE lies in a hook's activation.

    Attributes:
        heads: heads that are laid side by side, [... head d_head] as [... d_head * head]; None where the hook's last
            axis is taken as it is.
        head: the only head that is taken; None for all.
    """

    heads: int | None = None
    head: int | None = None

    def part(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What of the activation the SAE is about, in the hook's own shape."""
        return x if self.head is None else x[..., self.head, :]

    def joined(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The part as the SAE reads it, heads side by side."""
        return x if self.heads is None else x.flatten(-2)

    def parted(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The other way."""
        return x if self.heads is None else x.unflatten(-1, (self.heads, -1))

    def put(self, x: Float[Tensor, "..."], part: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """The activation `x` with `part` where it came from."""
        if self.head is None:
            return part
        whole = x.clone()
        whole[..., self.head, :] = part
        return whole


def layout(hook: str, width: int, head: int | None, cfg: HookedWhisperConfig, side: str) -> Layout:
    """How `width` values lie in the activation of `hook`.

    Args:
        hook: full name.
        width: of the SAE's input or output.
        head: the one head that the SAE is about; None for all.
        side: "d_in" or "d_out", for the message.

    Raises:
        SaeError: a width that does not fit, a head that is not there, or a hook whose last axis holds no features.
    """
    names = axes(hook)
    stack = cfg.stack("encoder" if hook.startswith("encoder.") else "decoder")
    widths = {"d_model": cfg.d_model, "d_mlp": stack.d_mlp, "d_head": stack.d_head, "vocab": cfg.d_vocab}
    if names[-1] not in widths:
        raise SaeError(
            f"No SAE can be attached to {hook!r}: its activation is [{' '.join(names)}], and an SAE reads features, "
            "which lie in the last axis."
        )
    own, by_head = widths[names[-1]], "head" in names
    if head is not None:
        if not by_head or not 0 <= head < stack.n_heads:
            has = f"has heads 0 to {stack.n_heads - 1}" if by_head else "has no heads"
            raise SaeError(f"The SAE's metadata names head {head}, and {hook!r} {has}.")
        fitting = {own: Layout(head=head)}
    elif by_head:
        fitting = {own: Layout(), own * stack.n_heads: Layout(heads=stack.n_heads)}
    else:
        fitting = {own: Layout()}
    if width not in fitting:
        means = f"{own} for each head on its own, or {own * stack.n_heads} for all of them side by side"
        wanted = means if by_head and head is None else str(own)
        raise SaeError(
            f"The SAE has {side}={width}, and {hook!r} of {cfg.model_name} needs {wanted}. Was it trained on another "
            "hook or another model? Its metadata tells: sae.cfg.metadata."
        )
    return fitting[width]


def _nothing(_point: nn.Module, _inputs: Any, _activation: Any) -> None:
    """A forward hook that makes its point be called."""


class SplicedSae:
    """An SAE that stands in for the activation of one hook.

    Attributes:
        sae: the SAE; it keeps its own dtype, whatever the model's.
        reads: the hook whose activation it encodes.
        writes: the hook whose activation it replaces; another one for a transcoder.
        use_error_term: whether what it misses is added to what it gives.
        skip_padding: whether frames of padding pass unchanged.
        is_permanent: whether it stays when all are reset.
        points: its hook points, by leaf name, in the order in which they fire.
    """

    def __init__(
        self,
        sae: SAE[Any],
        cfg: HookedWhisperConfig,
        *,
        reads: str,
        writes: str,
        use_error_term: bool,
        padding: Padding | None,
        is_permanent: bool,
    ) -> None:
        metadata = sae.cfg.metadata
        self.sae = sae
        self.reads, self.writes = reads, writes
        self.use_error_term = use_error_term
        self.skip_padding = padding is not None
        self.is_permanent = is_permanent
        self.points = {leaf: ActivationPoint() for leaf in SAE_POINTS}
        sae_lens: Any = sys.modules["sae_lens"]
        is_transcoder = isinstance(sae, sae_lens.Transcoder)
        head_out = metadata.hook_head_index_out if is_transcoder else metadata.hook_head_index
        self._reading = layout(reads, sae.cfg.d_in, metadata.hook_head_index, cfg, "d_in")
        d_out = sae.cfg.d_out if is_transcoder else sae.cfg.d_in  # pyright: ignore[reportAttributeAccessIssue]
        self._writing = layout(writes, d_out, head_out, cfg, "d_out" if is_transcoder else "d_in")
        # Transcoders ignore this setting of theirs.
        self._reshapes = bool(sae.hook_z_reshaping_mode) and not is_transcoder
        if self._reshapes and self._reading.heads is None:
            raise SaeError(
                f"The SAE lays heads side by side (reshape_activations='hook_z'), and with d_in={sae.cfg.d_in} there "
                f"are none to lay so at {reads!r}."
            )
        # Where more than encoder and decoder makes the reconstruction (a skip connection, a prediction from context).
        self._is_more = type(sae).forward is not sae_lens.SAE.forward
        self._padding = padding
        self._has_mel_frames = axes(writes)[1] == "mel_frame"
        self._read: Tensor | None = None
        self._handles: list[RemovableHandle] = []
        self._reader: RemovableHandle | None = None

    def is_computed(self, leaf: str) -> str | None:
        """Why a point of it is not computed, as the end of a sentence; None if it is."""
        if leaf == ERROR and not self.use_error_term:
            return "without an error term: attach the SAE with use_error_term=True"
        if leaf == ACTS_PRE and self.sae.cfg.architecture() in _WITHOUT_ACTS_PRE:
            return f"by a {self.sae.cfg.architecture()} SAE: its encoder has no such values"
        return None

    # Coming and going

    def attach(self, read: ActivationPoint, written: ActivationPoint) -> None:
        """Puts it to work at two points of the model (the same one twice, unless it is a transcoder)."""
        for leaf, point in self.points.items():
            written.add_module(leaf, point)
        self._handles = [
            # Before all hooks of the point, which so see what flows on, whenever they were added.
            written.register_forward_pre_hook(self._replace),
            written.register_forward_hook(_nothing),
        ]
        if read is not written:
            self._reader = read.register_forward_hook(self._remember)
            self._handles += [self._reader, read.register_forward_pre_hook(self._remember_last)]

    def detach(self, written: ActivationPoint) -> None:
        """Leaves the model as it was."""
        for handle in self._handles:
            handle.remove()
        for leaf in self.points:
            delattr(written, leaf)
        self._handles, self._reader, self._read = [], None, None

    def _remember_last(self, point: nn.Module, _inputs: Any) -> None:
        # A transcoder reads what flows on at its input, so after every hook there, those added later included.
        assert self._reader is not None
        point._forward_hooks[self._reader.id] = point._forward_hooks.pop(self._reader.id)

    def _remember(self, _point: nn.Module, _inputs: Any, activation: Tensor) -> None:
        self._read = activation

    def _replace(self, _point: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        return self.run(inputs[0])

    # What it does

    def run(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """What flows on in the place of activation `x`, in its shape and dtype.

        Raises:
            SaeError: an activation on another device than the SAE; for a transcoder, no input of the same positions.
        """
        source = x if self.reads == self.writes else self._what_was_read(x)
        if self.sae.W_dec.device != x.device:
            raise SaeError(
                f"The SAE at {self.writes!r} is on {self.sae.W_dec.device} and the activation on {x.device}: move it "
                f"with sae.to({str(x.device)!r})."
            )
        target = self._writing.part(x)
        sae_in = self._reading.joined(self._reading.part(source)).to(self.sae.dtype)
        out = self._observed(sae_in)
        if out.shape != target.shape:
            raise SaeError(
                f"The SAE made {list(out.shape)} of the activation at {self.reads!r}, and {self.writes!r} holds "
                f"{list(target.shape)}."
            )
        mask = None if self._padding is None else self._mask(target)
        if self.use_error_term:
            error = (target - self._clean(sae_in, out)).detach()
            if mask is not None:
                error = error.where(mask, 0)
            out = out + see(self.points[ERROR], error)
        out = out.to(x.dtype)
        if mask is not None:
            out = out.where(mask, target)
        return self._writing.put(x, see(self.points[OUTPUT], out))

    def _what_was_read(self, x: Tensor) -> Tensor:
        read, self._read = self._read, None
        if read is None or read.shape[:2] != x.shape[:2]:
            found = "was not computed in this pass" if read is None else f"holds {list(read.shape)}"
            raise SaeError(
                f"The transcoder from {self.reads!r} to {self.writes!r} has nothing to read for an activation of "
                f"{list(x.shape)}: its input {found}."
            )
        return read

    def _mask(self, target: Tensor) -> Tensor | None:
        """True where there is audio, in the activation's rank; None if that is everywhere."""
        assert self._padding is not None
        frames = self._padding.frame_mask
        if frames is None or bool(frames.all()):
            return None
        if self._has_mel_frames:
            frames = frames.repeat_interleave(2, dim=1)
        if frames.shape[0] != target.shape[0] or frames.shape[1] < target.shape[1]:
            raise SaeError(
                f"The padding of {list(frames.shape)} frames is known, and {self.writes!r} holds "
                f"{list(target.shape)}: attach the SAE without skip_padding."
            )
        frames = frames[:, : target.shape[1]]
        return frames.view(*frames.shape, *[1] * (target.ndim - 2))

    def _reconstruct(self, sae_in: Tensor, *, observed: bool) -> Tensor:
        """The SAE's own pass, in the shape of the hook that it writes."""
        sae_in = self._reading.parted(sae_in) if self._reshapes else sae_in
        if self._is_more:
            out = self.sae.forward(sae_in)
        else:
            acts = self.sae.encode(sae_in)
            out = self.sae.decode(see_kept(self.points[ACTS_POST], acts) if observed else acts)
        return out if self._reshapes else self._writing.parted(out)

    def _observed(self, sae_in: Tensor) -> Tensor:
        """The pass that counts, with the hooks that sit on its points."""
        if self.points[INPUT].live:
            # The memory may be the activation's own: an edit in place must reach neither the error nor earlier points.
            sae_in = see(self.points[INPUT], sae_in.clone())
        with self._listening() as fired:
            out = self._reconstruct(sae_in, observed=True)
        return out if RECONS in fired else see(self.points[RECONS], out)

    @contextmanager
    def _listening(self) -> Iterator[set[str]]:
        """While it lasts, the model's points are shown what the SAE's own points of these names see."""
        fired: set[str] = set()

        def show(leaf: str, _point: nn.Module, _inputs: Any, value: Tensor) -> Tensor:
            fired.add(leaf)
            return (see_kept if leaf == ACTS_POST else see)(self.points[leaf], value)

        leaves = [ACTS_PRE, RECONS, *([ACTS_POST] if self._is_more else [])]
        handles = [getattr(self.sae, leaf).register_forward_hook(partial(show, leaf)) for leaf in leaves]
        try:
            yield fired
        finally:
            for handle in handles:
                handle.remove()

    def _clean(self, sae_in: Tensor, out: Tensor) -> Tensor:
        """The reconstruction as it is without hooks, so that the error does not undo what they change."""
        own = [getattr(self.sae, leaf) for leaf in SAE_POINTS]
        if not any(self.points[leaf].live for leaf in _BEFORE_ERROR) and not any(p._forward_hooks for p in own):
            return out.detach()
        with torch.no_grad(), self._without_hooks():
            return self._reconstruct(sae_in, observed=False)

    @contextmanager
    def _without_hooks(self) -> Iterator[None]:
        own = {leaf: getattr(self.sae, leaf) for leaf in SAE_POINTS}
        for leaf in own:
            setattr(self.sae, leaf, nn.Identity())
        try:
            yield
        finally:
            for leaf, point in own.items():
                setattr(self.sae, leaf, point)
