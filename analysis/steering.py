"""Steering: latents of an SAE, or plain directions, pushed while the model listens and writes.

    how = Steering([Add(latent=17, alpha=2.0, magnitude=9.5)], sae=sae)      # or activity= for typical magnitudes
    with steer(model, how):
        model.transcribe("speech.wav")
    model.run_with_hooks("speech.wav", "", fwd_hooks=steering_hooks(model, how))

An edit changes codes, and the codes change the activation x in one of two ways:

    error_term="kept"      x + decode(edited) - decode(codes)     the model's own activation, moved by the edit alone
    error_term="dropped"   decode(edited)                         the SAE stands in for x: what it misses is lost, too

With the error dropped and no edit at all, that is the control that tells what splicing does. Frames of padding, of
which the SAE knows nothing, pass unchanged; so does everything outside `where`, but for the splice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from hooked_whisper.analysis.edits import DirectionEdit, Edit, LatentEdit, Positions
from hooked_whisper.axes import axes
from hooked_whisper.errors import AnalysisError
from hooked_whisper.mel import FRAMES_PER_SECOND
from hooked_whisper.model import HookedWhisper
from hooked_whisper.padding import Padding
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.saes.coding import SparseCoder, find_site, hook_width, is_transcoder
from hooked_whisper.splicing import _short

if TYPE_CHECKING:
    from hooked_whisper.analysis.activity import Activity
    from hooked_whisper.hooks import HookFunction

    ErrorTerm = Literal["kept", "dropped"]
    Edits = Sequence[Edit]
else:  # checked here, with messages that say more than a type checker's
    ErrorTerm = str
    Edits = Any

# Their reconstruction is more than what they decode, so an edit of codes is not all that would change.
_MORE_THAN_DECODED = ("temporal",)


@dataclass(frozen=True, eq=False)
class Steering:
    """What is done at one hook.

    Attributes:
        edits: one after another, each on the codes that those before it left; `where` of each is judged by the codes
            before all of them. None at all, with the error dropped, is the SAE-only control.
        sae: an SAE of SAELens, or a basis of hooked_whisper.saes.baselines; None where only vectors are added.
        hook: which activation; None takes the SAE's own.
        error_term: "kept" adds the difference that the edits make to the model's own activation; "dropped" puts the
            SAE's reconstruction in its place.
        strength: how much of the edits: 0 none, 1 as they are, more goes on along the same line (codes + strength *
            (edited - codes)), so that a zeroed latent at 3 stands at -2 times its activation. The dose of a dose curve.
        activity: typical magnitudes for edits that were given none.
        padding: steer and splice frames of padding, too.

    Raises:
        AnalysisError: nothing to do, a strength that is not finite, edits of latents without an SAE.
    """

    edits: Edits = ()
    sae: SparseCoder | None = None
    hook: str | None = None
    error_term: ErrorTerm = "kept"
    strength: float = 1.0
    activity: Activity | None = None
    padding: bool = False

    def __post_init__(self) -> None:
        if self.error_term not in ("kept", "dropped"):
            raise AnalysisError(f"Unknown error_term {self.error_term!r}: expected 'kept' or 'dropped'.")
        if isinstance(self.strength, bool) or not math.isfinite(self.strength):
            raise AnalysisError(f"strength={self.strength!r}: expected a finite number; 1 makes the edits as they are.")
        if isinstance(self.edits, Edit) or not all(isinstance(edit, Edit) for edit in self.edits):
            raise AnalysisError(f"edits are a list of edits, such as [Add(latent=17, alpha=2)], got {self.edits!r}.")
        if self.sae is None and not self.edits:
            raise AnalysisError("Nothing to do: pass edits=, or an sae= whose reconstruction is to be spliced in.")
        if self.sae is None:
            if self.error_term == "dropped":
                raise AnalysisError("error_term='dropped' puts an SAE's reconstruction in place: pass sae=.")
            needy = next((edit for edit in self.edits if edit.latents()), None)
            if needy is not None:
                raise AnalysisError(f"{needy} is about a latent: pass the SAE that has it, sae=.")
        elif not self.edits and self.error_term == "kept":
            raise AnalysisError("Nothing to do: without edits, and with the error kept, nothing changes.")


class Steerer:
    """A `Steering` checked against a model: a function of activations at its hook.

    Raises:
        AnalysisError: no hook, a latent that the SAE does not have, an SAE of another model or hook, a transcoder, an
            SAE of single heads, a vector of another width, a span in the decoder, a magnitude that nobody knows.
        SaeError, HookNameError: an SAE or a hook that does not fit the model.
    """

    def __init__(self, model: HookedWhisper, steering: Steering) -> None:
        self.steering = steering
        self.sae = steering.sae
        self.hook = _hook(model, steering)
        self.n_mel_frames = model.cfg.n_mel_frames
        names = axes(self.hook)
        self.rate = {"frame": FRAMES_PER_SECOND, "mel_frame": 2 * FRAMES_PER_SECOND}.get(names[1])
        if self.sae is not None and self.sae.W_dec.device != model.device:
            raise AnalysisError(
                f"The SAE is on {self.sae.W_dec.device} and the model on {model.device}: move it with sae.to(...)."
            )
        width, d_sae = hook_width(model, self.hook), None if self.sae is None else self.sae.cfg.d_sae
        for edit in steering.edits:
            edit.check(d_sae, width, self.hook, has_time=self.rate is not None)
        self._magnitudes = [edit.known_magnitude(steering.activity) for edit in steering.edits]

    def __call__(
        self,
        x: Float[Tensor, "batch position d"],
        frame_mask: Bool[Tensor, "clip frame"] | None = None,
    ) -> Float[Tensor, "batch position d"]:
        """The activation as it flows on; `x` itself is left alone.

        Args:
            frame_mask: True where there is audio; None where that is everywhere.

        Raises:
            AnalysisError: a span past a clip's end, or a mask or spans of another number of clips.
        """
        mask = self._mask(x, frame_mask)
        here = torch.ones_like(mask) if self.steering.padding else mask
        clip, position = here.nonzero(as_tuple=True)
        rows = x[clip, position]
        if not len(rows):
            return x
        codes = None if self.sae is None else self.sae.encode(rows.to(self.sae.W_dec.dtype)[None])[0]
        at = Positions(clip, position, mask.sum(1), self.rate, codes)
        out = self._steered(rows, codes, at)
        steered = x.clone()
        steered[clip, position] = out.to(x.dtype)
        return steered

    def _steered(self, rows: Tensor, codes: Tensor | None, at: Positions) -> Tensor:
        steering, out = self.steering, rows
        chosen = [edit.where.mask(at) if edit.where is not None else at.everywhere() for edit in steering.edits]
        if self.sae is not None and codes is not None:
            edited = codes
            for edit, magnitude, here in zip(steering.edits, self._magnitudes, chosen, strict=True):
                if isinstance(edit, LatentEdit):
                    edited = edit.apply(edited, here, magnitude)
            edited = codes + steering.strength * (edited - codes) if edited is not codes else codes
            if steering.error_term == "dropped":
                out = self.sae.decode(edited[None])[0]
            elif edited is not codes:
                # Once for both: an SAE that normalises remembers the rows that it encoded for one decoding.
                after, before = self.sae.decode(torch.stack([edited, codes]))
                changed = (edited != codes).any(-1, keepdim=True)  # rows without an edit stay to the last bit
                out = rows + (after - before).where(changed, 0).to(rows.dtype)
        for edit, here in zip(steering.edits, chosen, strict=True):
            if isinstance(edit, DirectionEdit):
                out = out + steering.strength * edit.push(out, here, self.sae).to(out.dtype)
        return out

    def _mask(self, x: Tensor, frame_mask: Tensor | None) -> Bool[Tensor, "batch position"]:
        """[batch position], True where there is audio, or a token."""
        if frame_mask is None or self.rate is None:
            return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        mask = frame_mask.to(x.device)
        if self.rate != FRAMES_PER_SECOND:
            mask = mask.repeat_interleave(2, dim=1)
        if mask.shape[0] != x.shape[0] or mask.shape[1] < x.shape[1]:
            raise AnalysisError(
                f"The mask of frames is {list(frame_mask.shape)} and {self.hook} holds {list(x.shape)}: expected a row "
                "for each clip and an entry for each frame."
            )
        return mask[:, : x.shape[1]]

    @property
    def has_spans(self) -> bool:
        """Whether an edit is about seconds of a clip."""
        return any(edit.where is not None and edit.where.in_seconds for edit in self.steering.edits)


def _hook(model: HookedWhisper, steering: Steering) -> str:
    """The hook that is steered, all that can be said about SAE, hook and model being said."""
    sae, hook = steering.sae, steering.hook
    if sae is not None and not isinstance(sae, Basis):
        metadata = sae.cfg.metadata
        if is_transcoder(sae) or metadata.hook_name_out not in (None, metadata.hook_name):
            raise AnalysisError("A transcoder writes another hook than it reads: steer with an SAE of the hook itself.")
        if sae.cfg.architecture() in _MORE_THAN_DECODED:
            raise AnalysisError(
                f"What a {sae.cfg.architecture()} SAE makes of a row depends on the rows before it: it cannot steer."
            )
        if hook is not None and metadata.hook_name not in (None, hook):
            raise AnalysisError(
                f"The SAE was trained at {metadata.hook_name!r} and is to steer {hook!r}, where its latents mean "
                "nothing: leave hook= out, or load the SAE of that hook."
            )
        if _short(metadata.model_name) not in ("", _short(model.cfg.model_name)):
            raise AnalysisError(
                f"The SAE was trained on {metadata.model_name}, and this model is {model.cfg.model_name}, in which its "
                "latents mean nothing: load the SAE of this model."
            )
        hook = find_site(model, sae, hook).read
    elif sae is not None and hook is None:
        raise AnalysisError("A basis does not know its hook: pass hook=.")
    if hook is None:
        found = {edit.hook() for edit in steering.edits} - {None}
        if len(found) != 1:
            raise AnalysisError("No hook is known, or several: pass hook=, such as hook='encoder.hook_out'.")
        hook = found.pop()
    assert hook is not None
    model.resolve_names([hook])
    names = axes(hook)
    if len(names) != 3 or names[:1] != ("batch",) or names[1] not in ("frame", "mel_frame", "pos"):
        raise AnalysisError(
            f"{hook!r} holds [{' '.join(names)}]: steering needs [batch, frames or tokens, features], such as "
            "'encoder.hook_out' or a hook_resid_post."
        )
    if sae is not None and sae.W_dec.shape[1] != hook_width(model, hook):
        raise AnalysisError(
            f"The SAE writes rows of {sae.W_dec.shape[1]}, and {hook!r} of {model.cfg.model_name} has rows of "
            f"{hook_width(model, hook)}: it was made for another hook or another model."
        )
    attached = next((spliced for spliced in model._spliced if hook in (spliced.reads, spliced.writes)), None)
    if attached is not None:
        raise AnalysisError(
            f"An SAE is attached at {hook!r} already, so that steering would read its reconstruction: take it off "
            "(model.reset_saes), steering brings its own; or edit its hook_sae_acts_post with a hook."
        )
    return hook


def steering_hooks(
    model: HookedWhisper, *steering: Steering, frame_mask: Bool[Tensor, "batch frame"] | None = None
) -> list[tuple[str, HookFunction]]:
    """Hooks for `run_with_hooks`, `run_with_cache(fwd_hooks=...)` and `model.hooks`.

    What is padding they cannot tell: pass `frame_mask` (a cache has one), or use `steer`, which finds out.

    Raises:
        AnalysisError: as `Steerer`; two for one hook; when they run, a span past a clip's end.
    """
    return [(one.hook, _hook_function(one, frame_mask)) for one in _steerers(model, steering)]


@contextmanager
def steer(model: HookedWhisper, *steering: Steering) -> Iterator[HookedWhisper]:
    """Steering for the length of a `with` block, in every pass and every step of generation.

    Frames of padding are recognised from the audio that the model is given (a spectrogram has none that is known).
    Spans are seconds of a clip of at most 30 s; longer clips are read window by window, in which there are none.

    Raises:
        AnalysisError: as `steering_hooks`; when it runs, a span in a clip over 30 s.
    """
    steerers = _steerers(model, steering)
    padding = Padding(model.log_mel, model.hook_mel, model.encoder)
    try:
        with model.hooks(fwd_hooks=[(one.hook, _hook_function(one, padding)) for one in steerers]):
            yield model
    finally:
        padding.remove()


def _steerers(model: HookedWhisper, steering: Sequence[Steering]) -> list[Steerer]:
    if not steering or not all(isinstance(one, Steering) for one in steering):
        raise AnalysisError(f"Expected one Steering or more, got {steering!r}.")
    found = [Steerer(model, one) for one in steering]
    hooks = [one.hook for one in found]
    if len(set(hooks)) < len(hooks):
        twice = next(hook for hook in hooks if hooks.count(hook) > 1)
        raise AnalysisError(f"{twice!r} is steered twice: put all edits of a hook into one Steering.")
    return found


def _hook_function(steerer: Steerer, padding: Padding | Tensor | None) -> HookFunction:
    window = steerer.n_mel_frames

    def change(activation: Tensor, hook: HookPoint) -> Tensor:
        if not isinstance(padding, Padding):
            return steerer(activation, padding)
        made = padding._made
        if steerer.has_spans and made is not None and made.shape[2] > window:
            raise AnalysisError(
                "A span is in seconds of a clip, and a clip over 30 s is read in windows that begin where the text "
                "before them ends: cut the clip, or steer all of it."
            )
        return steerer(activation, padding.frame_mask)

    return change
