"""Keys and values that the decoder has computed, kept between the steps of generation.

Speaks the few words of transformers' cache interface that `generate` uses (length, beam
reordering, cropping). Buffers are laid out once and grow by doubling, so that a step writes one
position instead of copying the whole past.
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

_FIRST_CAPACITY = 64  # positions; most transcripts of 30 s fit in a few doublings


class KeyValueCache:
    """Self-attention keys and values of past tokens, and cross-attention's of the frames.

    Keys and values are handed out as [batch pos head d_head], the shape that the hooks see, over
    memory laid out by head, the order in which attention reads them.
    """

    is_compileable = False

    def __init__(self) -> None:
        self._self: dict[int, tuple[Tensor, Tensor]] = {}
        self._frames: dict[int, tuple[Tensor, Tensor]] = {}
        self._length = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens that all layers have seen."""
        return self._length

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """No bound of its own (-1): the decoder's context is what bounds it."""
        return -1

    def advance(self, n_pos: int) -> None:
        """Counts the positions of a finished step."""
        self._length += n_pos

    def extend(
        self,
        layer: int,
        k: Float[Tensor, "batch pos head d_head"],
        v: Float[Tensor, "batch pos head d_head"],
    ) -> tuple[Float[Tensor, "batch key head d_head"], Float[Tensor, "batch key head d_head"]]:
        """Writes new positions after the past ones of `layer`; returns all of them."""
        start, stop = self._length, self._length + k.shape[1]
        stored = self._self.get(layer)
        if stored is None or stored[0].shape[2] < stop:
            stored = self._grown(stored, k, stop)
            self._self[layer] = stored
        keys, values = stored
        keys[:, :, start:stop] = k.transpose(1, 2)
        values[:, :, start:stop] = v.transpose(1, 2)
        return keys[:, :, :stop].transpose(1, 2), values[:, :, :stop].transpose(1, 2)

    def _grown(self, stored: tuple[Tensor, Tensor] | None, like: Tensor, needed: int) -> tuple[Tensor, Tensor]:
        batch, _, heads, width = like.shape
        capacity = _FIRST_CAPACITY
        while capacity < needed:
            capacity *= 2
        keys, values = (like.new_empty(batch, heads, capacity, width) for _ in range(2))
        if stored is not None:
            keys[:, :, : self._length] = stored[0][:, :, : self._length]
            values[:, :, : self._length] = stored[1][:, :, : self._length]
        return keys, values

    def frames(
        self, layer: int
    ) -> tuple[Float[Tensor, "batch frame head d_head"], Float[Tensor, "batch frame head d_head"]] | None:
        """Cross-attention's keys and values of `layer` as projected, or None before the first step."""
        kept = self._frames.get(layer)
        return None if kept is None else (kept[0].permute(0, 3, 1, 2), kept[1].permute(0, 3, 1, 2))

    def keep_frames(
        self,
        layer: int,
        k: Float[Tensor, "batch frame head d_head"],
        v: Float[Tensor, "batch frame head d_head"],
    ) -> tuple[Float[Tensor, "batch frame head d_head"], Float[Tensor, "batch frame head d_head"]]:
        """Stores cross-attention's keys and values of `layer`; returns them over the stored memory.

        Both lie with frames innermost, the order in which a step reads them quickest.
        """
        self._frames[layer] = (k.permute(0, 2, 3, 1).contiguous(), v.permute(0, 2, 3, 1).contiguous())
        kept = self.frames(layer)
        assert kept is not None
        return kept

    # What transformers' generate asks of a cache.

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Makes row i continue what row beam_idx[i] was (beam search).

        Beams move within one clip only, and all beams of a clip read the same frames, so the
        cross-attention keys and values (12 of every 13 bytes here) stay where they are.
        """
        for layer, (keys, values) in self._self.items():
            rows = beam_idx.to(keys.device)
            self._self[layer] = (keys.index_select(0, rows), values.index_select(0, rows))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row `repeats` times."""
        self._each(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`."""
        self._each(lambda x: x[indices])

    def crop(self, max_length: int) -> None:
        """Forgets tokens past `max_length`, or the last -max_length when negative."""
        self._length = max(0, self._length + max_length) if max_length < 0 else min(self._length, max_length)

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        for store in (self._self, self._frames):
            for layer, (keys, values) in store.items():
                store[layer] = (change(keys), change(values))
