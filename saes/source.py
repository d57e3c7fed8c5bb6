"""What training reads from: rows of activations, from a store on disk or from a model that runs as it goes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class ActivationSource(Protocol):
    """Rows of activations of one or more hooks.

    A row is what one hook holds at one position of one clip: an encoder frame (20 ms) or a decoder token, flattened
    over heads where the hook has them. Padding is never a row.
    """

    @property
    def hooks(self) -> tuple[str, ...]:
        """Full names of the hooks that it has."""
        ...

    @property
    def model_name(self) -> str:
        """The model that the activations are of, such as "openai/whisper-base"."""
        ...

    @property
    def n_rows(self) -> int | None:
        """Rows of one pass over the data; None where that is not known before."""
        ...

    def width(self, hook: str) -> int:
        """Width of a row of `hook`: the `d_in` of an SAE there."""
        ...

    def batches(
        self, hook: str, batch_size: int, *, seed: int = 0, start: int = 0, repeat: bool = True
    ) -> Iterator[Float[Tensor, "batch width"]]:
        """Shuffled rows in batches of exactly `batch_size`, float32 on the CPU; pass after pass while `repeat`.

        The order depends on `seed` alone. `start` skips that many rows of it, so that a run that was cut off goes on
        with the very rows that came next. Without `repeat` there is one pass, and its last batch may be smaller.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Where the rows come from (model, hook, corpus, licence, checksums), for the metadata of what is trained."""
        ...
