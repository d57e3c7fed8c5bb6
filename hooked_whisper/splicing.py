"""Sparse autoencoders in a model: attached to hooks by name, run, cached, edited, taken off again.

    model.add_sae(sae)                                       # at sae.cfg.metadata.hook_name
    logits, cache = model.run_with_cache("speech.wav", "")
    cache["encoder.hook_out.hook_sae_acts_post"]             # [batch frame feature]
    model.reset_saes()

    with model.saes([encoder_sae, decoder_sae], use_error_term=True):
        model.transcribe("speech.wav")

Names and meanings are SAELens's (`HookedSAETransformer`). What differs: a hook that is not there raises, as does a
second SAE at one hook; hooks of the model itself stay through coming and going, and see what the SAE puts in the
activation's place (`hook_sae_input` sees what it took); a skip transcoder's skip connection counts; a mixed precision
of model and SAE works; padding may be left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hooked_whisper.axes import axes
from hooked_whisper.components import ActivationPoint
from hooked_whisper.errors import HookNameError, SaeError, did_you_mean
from hooked_whisper.hooks import HookedModule, HookList
from hooked_whisper.padding import Padding
from hooked_whisper.spliced_sae import SAE_PREFIX, SplicedSae, checked_sae

if TYPE_CHECKING:
    from sae_lens import SAE

    # One SAE, several, or each with the hook that it goes to.
    SaesInput = SAE[Any] | Sequence[SAE[Any]] | Mapping[str, SAE[Any]]
else:
    SaesInput = Any

# Architectures that look back over positions, of which generation hands over one at a time.
_LOOKS_BACK = ("temporal",)


class SaeSplicing(HookedModule):
    """A hooked model that takes SAEs."""

    def __init__(self) -> None:
        super().__init__()
        self._spliced: list[SplicedSae] = []
        self._padding: Padding | None = None

    # Names

    def setup(self) -> None:
        """Names all modules and hook points; those of an SAE come before the hook that it writes, as they fire."""
        super().setup()
        for spliced in self._spliced:
            ordered: dict[str, ActivationPoint] = {}
            inside = [f"{spliced.writes}.{leaf}" for leaf in spliced.points]
            for name, point in self.hook_dict.items():
                if name == spliced.writes:
                    ordered |= {first: self.hook_dict[first] for first in inside}
                ordered[name] = point
            self.hook_dict = ordered

    def _why_off(self, name: str) -> str | None:
        place, found, _ = name.partition(SAE_PREFIX)
        if not found:
            return super()._why_off(name)
        spliced = next(spliced for spliced in self._spliced if spliced.writes == place)
        return super()._why_off(place) or spliced.is_computed(name.removeprefix(f"{place}."))

    def _matches(self, name: str) -> list[str]:
        place, found, _ = str(name).partition(SAE_PREFIX)
        if found and place in self.hook_dict and place not in {spliced.writes for spliced in self._spliced}:
            raise HookNameError(f"{name!r} matches no hook point: no SAE writes {place!r}. {self._attached()}")
        return super()._matches(name)

    def _attached(self) -> str:
        places = ", ".join(repr(place) for place in self.acts_to_saes)
        return f"Attached are SAEs at {places}." if places else "No SAE is attached: see add_sae."

    # Coming and going

    @property
    def acts_to_saes(self) -> dict[str, SAE[Any]]:
        """The attached SAEs by the hook that each reads."""
        return {spliced.reads: spliced.sae for spliced in self._spliced}

    def add_sae(
        self,
        sae: SAE[Any],
        *,
        hook: str | None = None,
        hook_out: str | None = None,
        use_error_term: bool | None = None,
        skip_padding: bool = False,
        is_permanent: bool = False,
    ) -> None:
        """Attaches an SAE or transcoder, which from then on stands in for the activation of a hook.

        It is moved to the model's device and keeps its dtype. Heads are laid side by side where its width says so.

        Args:
            sae: of any of SAELens's architectures, for inference.
            hook: which activation it reads; None takes `sae.cfg.metadata.hook_name`.
            hook_out: which activation it replaces; None takes `metadata.hook_name_out`, or the one it reads.
            use_error_term: add what the SAE misses, so that the model does what it does without it, unless features
                are edited; None takes `sae.use_error_term`.
            skip_padding: frames of the window in which there is no audio pass unchanged (encoder hooks only). Features
                are computed there too, to no effect; `cache.frame_mask` tells which they are. A spectrogram given in
                the place of audio has no padding that is known.
            is_permanent: `reset_saes()` leaves it.

        Raises:
            HookNameError: no such hook. ConfigError: a hook whose option is off.
            SaeError: no SAE, or one for training; a width that does not fit the hook; a hook that has an SAE already,
                or holds no features; a transcoder that would read after it writes.
        """
        self._splice(sae, hook, hook_out, use_error_term, skip_padding, is_permanent)

    def _splice(
        self,
        given: object,
        hook: str | None,
        hook_out: str | None,
        use_error_term: bool | None,
        skip_padding: bool,
        is_permanent: bool,
    ) -> SplicedSae:
        sae = checked_sae(given)
        metadata = sae.cfg.metadata
        reads = self._one_point(metadata.hook_name if hook is None else hook)
        out = metadata.hook_name_out if hook_out is None else hook_out
        if hook is not None and hook_out is None and out is not None:
            raise SaeError(f"A transcoder (this one writes {out!r}) that is given its hook= needs its hook_out=, too.")
        writes = reads if out is None else self._one_point(out)
        self._check_places(sae, reads, writes)
        if skip_padding:
            self._check_padding(writes)
        device = next(self.parameters()).device
        if sae.W_dec.device != device:
            sae.to(device=device)
        spliced = SplicedSae(
            sae,
            self.cfg,
            reads=reads,
            writes=writes,
            use_error_term=bool(sae.use_error_term) if use_error_term is None else use_error_term,
            padding=self._watched_padding() if skip_padding else None,
            is_permanent=is_permanent,
        )
        if _short(metadata.model_name) not in ("", _short(self.cfg.model_name)):
            logging.warning(
                f"The SAE for {reads!r} was trained on {metadata.model_name}, and this model is {self.cfg.model_name}: "
                "its features need not mean anything here."
            )
        spliced.attach(self.hook_dict[reads], self.hook_dict[writes])
        self._spliced.append(spliced)
        self.setup()
        return spliced

    def _one_point(self, name: object) -> str:
        if name is None:
            raise SaeError(
                "The SAE's metadata name no hook (sae.cfg.metadata.hook_name): say where it goes with hook=."
            )
        if not isinstance(name, str) or "*" in name or SAE_PREFIX in name:
            raise SaeError(f"An SAE goes to one activation of the model, given by its whole name; got {name!r}.")
        return self.resolve_names(name)[0]

    def _check_places(self, sae: SAE[Any], reads: str, writes: str) -> None:
        for known in self._spliced:
            if known.sae is sae:
                raise SaeError(
                    f"This SAE is attached at {known.reads!r} already: take it off with reset_saes, or attach a copy "
                    "(copy.deepcopy)."
                )
            both = {known.reads, known.writes} & {reads, writes}
            if reads == known.reads or writes == known.writes:
                raise SaeError(
                    f"{both.pop()!r} has an SAE already, and takes one only: take it off with "
                    f"reset_saes({known.reads!r})."
                )
        order = list(self.hook_dict)
        if order.index(reads) > order.index(writes):
            raise SaeError(f"A transcoder cannot read {reads!r} and write {writes!r}, which the model computes first.")
        if axes(reads)[:2] != axes(writes)[:2]:
            raise SaeError(
                f"{reads!r} and {writes!r} have different positions: [{' '.join(axes(reads))}] and "
                f"[{' '.join(axes(writes))}]."
            )
        if sae.cfg.architecture() in _LOOKS_BACK and not writes.startswith("encoder."):
            raise SaeError(
                f"A {sae.cfg.architecture()} SAE looks back over positions, of which the decoder sees one at a time "
                "when it generates: it goes to hooks of the encoder only."
            )

    def _check_padding(self, writes: str) -> None:
        if not writes.startswith("encoder.") or axes(writes)[:2] not in (("batch", "frame"), ("batch", "mel_frame")):
            raise SaeError(
                f"skip_padding is for hooks of the encoder that hold each clip's frames; {writes!r} holds "
                f"[{' '.join(axes(writes))}]."
            )

    def _watched_padding(self) -> Padding:
        if self._padding is None:
            self._padding = Padding(*map(self.get_submodule, ("log_mel", "hook_mel", "encoder")))
        return self._padding

    def reset_saes(self, act_names: str | Sequence[str] | None = None, *, including_permanent: bool = False) -> None:
        """Takes SAEs off again; hooks that were added to their points go with them, all others stay.

        Args:
            act_names: the hooks that they read; None takes off all but the permanent ones.
            including_permanent: take off these, too.

        Raises:
            SaeError: a hook that no SAE reads.
        """
        if act_names is None:
            leaving = [spliced for spliced in self._spliced if including_permanent or not spliced.is_permanent]
        else:
            wanted = [act_names] if isinstance(act_names, str) else list(act_names)
            unknown = next((name for name in wanted if name not in self.acts_to_saes), None)
            if unknown is not None:
                hint = did_you_mean(unknown, self.acts_to_saes)
                raise SaeError(f"No SAE reads {unknown!r}.{hint} {self._attached()}")
            leaving = [spliced for spliced in self._spliced if spliced.reads in wanted]
        self._take_off(leaving)

    def _take_off(self, leaving: Sequence[SplicedSae]) -> None:
        for spliced in leaving:
            spliced.detach(self.hook_dict[spliced.writes])
        self._spliced = [spliced for spliced in self._spliced if spliced not in leaving]
        if self._padding is not None and not any(spliced.skip_padding for spliced in self._spliced):
            self._padding.remove()
            self._padding = None
        self.setup()

    @contextmanager
    def saes(
        self,
        saes: SaesInput = (),
        *,
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        skip_padding: bool = False,
    ) -> Iterator[SaeSplicing]:
        """SAEs for the length of a `with` block.

        Args:
            saes: one, several, or a mapping from the hook that each reads (and replaces) to it.
            reset_saes_end: take them off at the end; False leaves them, unless attaching one of them fails.
            use_error_term, skip_padding: as in `add_sae`, for all of them.

        Raises:
            HookNameError, ConfigError, SaeError: as `add_sae`; then none of them is attached.
        """
        added: list[SplicedSae] = []
        keep = False
        try:
            for hook, sae in _with_hooks(saes):
                added.append(self._splice(sae, hook, None, use_error_term, skip_padding, False))
            keep = not reset_saes_end
            yield self
        finally:
            if not keep:
                self._take_off([spliced for spliced in added if spliced in self._spliced])

    # Running

    def run_with_saes(
        self,
        *args: Any,
        saes: SaesInput = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        skip_padding: bool = False,
        **kwargs: Any,
    ) -> Any:
        """What `forward(*args, **kwargs)` returns with these SAEs attached; see `saes`."""
        with self.saes(saes, reset_saes_end=reset_saes_end, use_error_term=use_error_term, skip_padding=skip_padding):
            return self.forward(*args, **kwargs)

    def run_with_cache_with_saes(
        self,
        *args: Any,
        saes: SaesInput = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        skip_padding: bool = False,
        **kwargs: Any,
    ) -> tuple[Any, Any]:
        """What `run_with_cache(*args, **kwargs)` returns with these SAEs attached; the cache has their points, too."""
        with self.saes(saes, reset_saes_end=reset_saes_end, use_error_term=use_error_term, skip_padding=skip_padding):
            return self.run_with_cache(*args, **kwargs)

    def run_with_hooks_with_saes(
        self,
        *args: Any,
        saes: SaesInput = (),
        reset_saes_end: bool = True,
        use_error_term: bool | None = None,
        skip_padding: bool = False,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **kwargs: Any,
    ) -> Any:
        """What `run_with_hooks(*args, **kwargs)` returns with these SAEs attached; hooks may sit on their points."""
        with self.saes(saes, reset_saes_end=reset_saes_end, use_error_term=use_error_term, skip_padding=skip_padding):
            return self.run_with_hooks(
                *args,
                fwd_hooks=fwd_hooks,
                bwd_hooks=bwd_hooks,
                reset_hooks_end=reset_hooks_end,
                clear_contexts=clear_contexts,
                **kwargs,
            )


def _with_hooks(saes: SaesInput) -> list[tuple[str | None, object]]:
    """Each SAE with the hook that was given for it, None where its metadata tell."""
    if isinstance(saes, Mapping):
        return list(saes.items())
    if isinstance(saes, list | tuple):
        return [(None, sae) for sae in saes]
    return [(None, saes)]  # an SAE can be iterated over, too, to other ends


def _short(model_name: str | None) -> str:
    """A model's name without its publisher: "openai/whisper-base" and "base" are the same."""
    return "" if model_name is None else str(model_name).rstrip("/").rpartition("/")[2].removeprefix("whisper-").lower()
