"""TransformerLens's hook API, made strict: every name must match, and a run can stop at a hook.

Names are exact ("encoder.blocks.3.hook_resid_post"), patterns with `*`
("decoder.blocks.*.cross_attn.hook_pattern"), lists of these, or functions from a name to a bool.
"""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
from torch import Tensor
from transformer_lens import HookedRootModule
from transformer_lens.hook_points import HookPoint

from hooked_whisper.axes import axes
from hooked_whisper.components import ActivationPoint
from hooked_whisper.config import HookedWhisperConfig, resolve_device
from hooked_whisper.errors import ConfigError, HookNameError, did_you_mean

NamesFilter = str | Sequence[str] | Callable[[str], bool] | None
HookFunction = Callable[..., Any]
HookList = Sequence[tuple[str | Callable[[str], bool], HookFunction]]

# Points that are computed only while an option of the model is on: leaf name -> option.
_OPTIONAL = {
    "hook_result": "use_attn_result",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_cross_q_input": "use_split_qkv_input",
    "hook_cross_k_input": "use_split_qkv_input",
    "hook_cross_v_input": "use_split_qkv_input",
    "hook_attn_in": "use_attn_in",
    "hook_cross_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
}
# Points that a full cache leaves out, because it derives them when they are read: scores and patterns from q and k,
# the MLP's activations from what goes into its GELU. For 30 s of whisper-base they are 940 of 1,310 MB.
SCORES_AND_PATTERN = ("hook_attn_scores", "hook_pattern")
DERIVED = (*SCORES_AND_PATTERN, "mlp.hook_post")


# Models that are generating, by id, in this thread: another thread may be in a pass that counts.
GENERATING: ContextVar[frozenset[int]] = ContextVar("GENERATING", default=frozenset())


class StopForward(Exception):
    """Carries the activation at which a run was told to stop; never leaves the library."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value


class HookedModule(HookedRootModule):
    """TransformerLens's `HookedRootModule` with checked names, `stop_at`, and options as in HookedTransformer."""

    cfg: HookedWhisperConfig
    hook_dict: dict[str, ActivationPoint]  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__()

    @property
    def _generating(self) -> bool:
        """Whether this thread is inside a generation whose passes caching and stop_at are not to see."""
        return id(self) in GENERATING.get()

    # Names

    def hook_names(self, pattern: str = "*") -> list[str]:
        """Names of all hook points that are computed under the present options, matching `pattern`."""
        if not isinstance(pattern, str):
            raise HookNameError(f"A pattern is a string, such as 'encoder.*', got {pattern!r}.")
        return [name for name in self.hook_dict if self._is_on(name) and fnmatch.fnmatchcase(name, pattern)]

    def _is_on(self, name: str) -> bool:
        return self._why_off(name) is None

    def _why_off(self, name: str) -> str | None:
        """Why the hook point `name` is not computed, as the end of a sentence; None if it is."""
        option = _OPTIONAL.get(name.rpartition(".")[2])
        if option is None or getattr(self.cfg, option):
            return None
        return f"while {option} is off: call model.set_{option}(True) first"

    def resolve_names(self, names: NamesFilter) -> list[str]:
        """The hook points that `names` means, in the model's order; None means all but those that the cache derives.

        Raises:
            HookNameError: a name, pattern or function that matches no hook point.
            ConfigError: a point whose option is off.
        """
        if names is None:
            return [name for name in self.hook_names() if not name.endswith(DERIVED)]
        if callable(names):
            found = [name for name in self.hook_names() if names(name)]
            if not found:
                raise HookNameError(
                    f"The function given as a filter of names matches none of the {len(self.hook_dict)} hook points. "
                    "`model.hook_names()` lists them."
                )
            return found
        if not isinstance(names, str | Iterable):
            raise HookNameError(f"Hooks are named by a string, a list of strings or a function; got {names!r}.")
        wanted = [names] if isinstance(names, str) else list(names)
        if not wanted:
            raise HookNameError("An empty list of hook names was given: name at least one, or None for all.")
        chosen = {match for name in wanted for match in self._matches(name)}
        return [name for name in self.hook_dict if name in chosen]

    def _matches(self, name: str) -> list[str]:
        if not isinstance(name, str):
            raise HookNameError(f"A hook is named by a string, got {name!r}.")
        if name in self.hook_dict:
            why_off = self._why_off(name)
            if why_off is not None:
                raise ConfigError(f"{name!r} is not computed {why_off}.")
            return [name]
        found = self.hook_names(name) if "*" in name else []
        if not found:
            what = "is a module, not a hook point." if name in self.mod_dict else "matches no hook point."
            inside = [known for known in self.hook_dict if known.startswith(f"{name}.")][:5]
            hint = f" Inside it: {', '.join(inside)}." if inside else did_you_mean(name, self.hook_dict)
            raise HookNameError(f"{name!r} {what}{hint} `model.hook_names()` lists all {len(self.hook_dict)}.")
        return found

    # Options, as in HookedTransformer

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether attention computes each head's output apart (`hook_result`)."""
        self.cfg.use_attn_result = use_attn_result

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether q, k and v of each head read inputs of their own (`hook_q_input` and so on)."""
        self.cfg.use_split_qkv_input = use_split_qkv_input

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether each head reads an input of its own (`hook_attn_in`, `hook_cross_attn_in`)."""
        self.cfg.use_attn_in = use_attn_in

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether the MLP reads a copy of the residual stream that can be edited (`hook_mlp_in`)."""
        self.cfg.use_hook_mlp_in = use_hook_mlp_in

    # Adding hooks

    def add_hook(  # type: ignore[override]
        self,
        name: str | Callable[[str], bool],
        hook: HookFunction,
        dir: Literal["fwd", "bwd"] = "fwd",
        is_permanent: bool = False,
        level: int | None = None,
        prepend: bool = False,
    ) -> None:
        """Adds `hook(activation, hook=point)` at every point that `name` matches; as in TransformerLens.

        Raises:
            HookNameError, ConfigError: see `resolve_names`.
        """
        if name is None:
            raise HookNameError("A hook needs a name, a pattern with '*', or a function of names; got None.")
        if not callable(hook):
            raise ConfigError(
                f"The hook on {name!r} cannot be called: expected a function of (activation, hook), got {hook!r}."
            )
        if dir not in ("fwd", "bwd"):
            raise ConfigError(f"Unknown direction {dir!r} of a hook: expected 'fwd' or 'bwd'.")
        for found in self.resolve_names(name):
            self.hook_dict[found].add_hook(hook, dir=dir, is_permanent=is_permanent, level=level, prepend=prepend)

    def add_perma_hook(  # type: ignore[override]
        self, name: str | Callable[[str], bool], hook: HookFunction, dir: Literal["fwd", "bwd"] = "fwd"
    ) -> None:
        """Adds a hook that `reset_hooks` leaves in place unless told `including_permanent=True`."""
        self.add_hook(name, hook, dir=dir, is_permanent=True)

    def _enable_hook(self, name: str | Callable[[str], bool], hook: HookFunction, dir: Literal["fwd", "bwd"]) -> None:
        self.add_hook(name, hook, dir=dir, level=self.context_level)

    @contextmanager
    def hooks(  # type: ignore[override]
        self,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator[HookedModule]:
        """Hooks for the length of a `with` block; as in TransformerLens, unknown names raise."""
        _check_pairs("fwd_hooks", fwd_hooks)
        _check_pairs("bwd_hooks", bwd_hooks)
        with super().hooks(list(fwd_hooks), list(bwd_hooks), reset_hooks_end, clear_contexts):
            yield self

    def run_with_hooks(  # type: ignore[override]
        self,
        *args: Any,
        fwd_hooks: HookList = (),
        bwd_hooks: HookList = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        stop_at: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Runs `forward(*args, **kwargs)` with temporary hooks.

        With `stop_at`, nothing after that hook point is computed in either stack, and its
        activation, hooks applied, is what is returned.
        """
        if bwd_hooks and reset_hooks_end:
            logging.warning(
                "Backward hooks are removed at the end of run_with_hooks, before a backward pass can reach them: "
                "use `with model.hooks(bwd_hooks=...)` around both passes, or reset_hooks_end=False."
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self._stoppable(stop_at, self.forward, *args, **kwargs)

    def _stoppable(self, stop_at: str | None, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls `function`; with `stop_at`, cuts it short there and returns the activation."""
        if stop_at is None:
            return function(*args, **kwargs)
        names = self.resolve_names(stop_at)
        if len(names) != 1:
            raise HookNameError(f"stop_at needs one hook point, {stop_at!r} matches {len(names)}.")

        def stop(_point: torch.nn.Module, _inputs: Any, activation: Any) -> None:
            if not self._generating:
                raise StopForward(activation)

        handle = self.hook_dict[names[0]].register_forward_hook(stop)
        try:
            return function(*args, **kwargs)
        except StopForward as stopped:
            return stopped.value
        finally:
            handle.remove()

    # Caching

    def get_caching_hooks(  # type: ignore[override]
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], list[tuple[str, HookFunction]], list[tuple[str, HookFunction]]]:
        """Hooks that fill a dictionary with activations (and gradients, under `name + "_grad"`)."""
        kept: dict[str, Tensor] = {} if cache is None else cache
        place = None if device is None else resolve_device(device)

        def keep(tensor: Tensor, name: str) -> None:
            if self._generating:  # the pass that counts comes after generation
                return
            value = tensor.detach()
            value = value if place is None else value.to(place)
            has_batch = axes(name)[0] == "batch"
            kept[name] = value[0] if remove_batch_dim and has_batch else value

        def forward_hook(tensor: Tensor, hook: HookPoint) -> None:
            keep(tensor, str(hook.name))

        def backward_hook(tensor: Tensor, hook: HookPoint) -> None:
            keep(tensor, f"{hook.name}_grad")

        names = self.resolve_names(names_filter)
        fwd: list[tuple[str, HookFunction]] = [(name, forward_hook) for name in names]
        bwd: list[tuple[str, HookFunction]] = [(name, backward_hook) for name in names] if incl_bwd else []
        return kept, fwd, bwd

    def add_caching_hooks(  # type: ignore[override]
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: str | torch.device | None = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Adds the hooks of `get_caching_hooks`, which stay until `reset_hooks`; returns the dictionary they fill."""
        kept, fwd, bwd = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        self.is_caching = True
        for name, hook in fwd:
            self.add_hook(name, hook, "fwd")
        for name, hook in bwd:
            self.add_hook(name, hook, "bwd")
        return kept

    def list_hooks(  # type: ignore[override]
        self,
        name_filter: NamesFilter = None,
        dir: Literal["fwd", "bwd", "both"] = "both",
        including_permanent: bool = True,
    ) -> dict[str, list[Any]]:
        """Hooks that sit on the points that `name_filter` means, by name; points without hooks are left out."""
        names = None if name_filter is None else self.resolve_names(name_filter)
        return super().list_hooks(names, dir, including_permanent)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """While it lasts, every point that has hooks already hands them a copy of its activation.

        Neighbouring points share memory, so a later edit in place would otherwise change what an
        earlier point has put into the cache.
        """
        guarded = [point for point in self.hook_dict.values() if point.live]
        for point in guarded:
            point.guard = True
        try:
            yield
        finally:
            for point in guarded:
                point.guard = False

    def _hooked_derived(self) -> list[str]:
        """Points that the cache must keep because a hook sits on them, so that nothing else tells their value."""
        found: list[str] = []
        for name, point in self.hook_dict.items():
            if point.live and name.endswith(DERIVED):
                module, _, leaf = name.rpartition(".")
                together = SCORES_AND_PATTERN if leaf in SCORES_AND_PATTERN else (leaf,)
                found += [f"{module}.{other}" for other in together]
        return found


def _check_pairs(what: str, hooks: object) -> None:
    """Raises ConfigError unless `hooks` is a list of pairs (name, function)."""
    pairs = hooks if isinstance(hooks, Sequence) and not isinstance(hooks, str) else [None]
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise ConfigError(
            f"{what} is a list of pairs (name, function), such as [('encoder.hook_out', function)]; got {hooks!r}."
        )
