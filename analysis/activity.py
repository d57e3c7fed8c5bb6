"""How often and how strongly each latent fires: the scale on which steering is dosed, and what its controls must match.

activity = Activity.of_store(sae, ActivationStore.open("acts"))
activity.magnitude_of(17)             # mean activation of latent 17 over the rows where it fires
activity.alike([17], n=1, seed=0)     # another latent that fires as often
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooked_whisper.errors import AnalysisError
from hooked_whisper.saes.baselines import Basis
from hooked_whisper.saes.coding import SparseCoder, code, find_site
from hooked_whisper.saes.spliced_evaluation import listen

if TYPE_CHECKING:
    from hooked_whisper.model import HookedWhisper
    from hooked_whisper.saes.store import ActivationStore

MIN_ALIKE = 10  # latents of nearest density among which one is drawn
_BATCH = 4096


@runtime_checkable
class Codes(Protocol):
    """What is needed of `FeatureCodes`: `acts`, a sparse array of scipy [row latent]."""

    @property
    def acts(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class Activity:
    """What latents do over some rows.

    Attributes:
        density: [latent], share of rows at which each fires.
        magnitude: [latent], mean activation where it fires; NaN for one that never does.
        n_rows: how many rows it is measured on.
    """

    density: Float[Tensor, " latent"]
    magnitude: Float[Tensor, " latent"]
    n_rows: int

    @classmethod
    def of_batches(cls, batches: Iterable[Float[Tensor, "_ latent"]]) -> Activity:
        """Of codes that come batch by batch.

        Raises:
            AnalysisError: no rows.
        """
        counts = sums = None
        n_rows = 0
        for acts in batches:
            fires, total = (acts != 0).sum(0).double().cpu(), acts.double().sum(0).cpu()
            counts, sums = (fires, total) if counts is None or sums is None else (counts + fires, sums + total)
            n_rows += len(acts)
        if counts is None or sums is None or not n_rows:
            raise AnalysisError("No rows: the activity of latents cannot be measured.")
        return cls((counts / n_rows).float(), (sums / counts.where(counts > 0, math.nan)).float(), n_rows)

    @classmethod
    def of_store(
        cls, sae: SparseCoder, store: ActivationStore, *, hook: str | None = None, max_rows: int | None = None
    ) -> Activity:
        """Over a store's rows; with `max_rows`, over about so many, in stretches spread evenly.

        Raises:
            AnalysisError: a basis whose hook is not given. StoreError: a hook that the store does not hold.
        """
        hook = _hook_of(sae, hook)
        n_rows = len(store)
        starts = range(0, n_rows, _BATCH)
        every = 1 if max_rows is None else max(1, math.ceil(n_rows / max(1, max_rows)))
        batches = (store.rows(hook, at, min(at + _BATCH, n_rows)) for at in starts[::every])
        return cls.of_batches(acts for rows in batches for _, acts, _ in code(sae, rows))

    @classmethod
    def of_clips(
        cls,
        model: HookedWhisper,
        sae: SparseCoder,
        clips: Sequence[Float[Tensor, "_"]],
        languages: Sequence[str | None] | None = None,
        *,
        batch_size: int = 8,
    ) -> Activity:
        """Over the frames of some waveforms, for an SAE in the encoder.

        Raises:
            AnalysisError: an SAE in the decoder, whose codes depend on a text: measure them on a store.
        """
        site = find_site(model, sae)
        if site.in_decoder:
            raise AnalysisError(f"{site.read} depends on a text: measure its latents on a store, Activity.of_store.")
        codes = list(languages) if languages is not None else ["en"] * len(clips)

        def batches() -> Iterable[Tensor]:
            for at in range(0, len(clips), batch_size):
                batch = listen(model, clips[at : at + batch_size], codes[at : at + batch_size], site)
                mask = batch.positions(site.read, None)
                for _, acts, _ in code(sae, batch.kept[site.read][mask]):
                    yield acts

        return cls.of_batches(batches())

    @classmethod
    def of_codes(cls, codes: Codes) -> Activity:
        """Over the codes of a store, made already (hooked_whisper.analysis.codes).

        Raises:
            AnalysisError: no rows.
        """
        acts = codes.acts.tocsc()
        counts = np.diff(acts.indptr).astype(np.float64)
        sums = np.asarray(acts.sum(0)).reshape(-1)
        n_rows = acts.shape[0]
        if not n_rows:
            raise AnalysisError("No rows: the activity of latents cannot be measured.")
        with np.errstate(invalid="ignore"):
            magnitude = np.where(counts > 0, sums / counts, math.nan)
        return cls(torch.tensor(counts / n_rows).float(), torch.tensor(magnitude).float(), n_rows)

    def __len__(self) -> int:
        return len(self.density)

    def magnitude_of(self, latent: int) -> float:
        """Typical active magnitude of a latent.

        Raises:
            AnalysisError: a latent that is not there, or that never fired.
        """
        if not 0 <= latent < len(self):
            raise AnalysisError(f"There is no latent {latent}: there are {len(self)}, counted from 0.")
        found = float(self.magnitude[latent])
        if math.isnan(found):
            raise AnalysisError(
                f"Latent {latent} fired in none of {self.n_rows:,} rows, so that its typical magnitude is not known: "
                "pass magnitude=, in units of activation."
            )
        return found

    def alike(self, latents: Sequence[int], *, seed: int, pool: int = MIN_ALIKE) -> list[int]:
        """For each latent another that fires about as often, drawn from the `pool` of nearest density, none twice.

        Raises:
            AnalysisError: a latent that never fires, or too few that do.
        """
        generator = np.random.default_rng(seed)
        taken, found = set(latents), []
        density = self.density.double().numpy()
        for latent in latents:
            self.magnitude_of(latent)
            distance = np.abs(np.log(np.maximum(density, 1e-12)) - math.log(density[latent]))
            order = [int(i) for i in np.argsort(distance, kind="stable") if density[i] > 0 and int(i) not in taken]
            if not order:
                raise AnalysisError(f"No latent is left that fires and could stand for latent {latent}.")
            found.append(int(generator.choice(order[:pool])))
            taken.add(found[-1])
        return found


def _hook_of(sae: SparseCoder, hook: str | None) -> str:
    if hook is None and not isinstance(sae, Basis):
        hook = sae.cfg.metadata.hook_name
    if hook is None:
        raise AnalysisError("The SAE does not say which hook it is of: pass hook=.")
    return hook
