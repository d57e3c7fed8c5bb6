"""Sparse autoencoders on Whisper: harvest activations, store them, train, evaluate, publish.

Import it as `hooked_whisper.saes`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if __name__ != "hooked_whisper.saes":  # at the repository's root Python also finds this folder under its bare name
    raise ImportError(
        f"this package was imported as {__name__!r}, which would be a second copy of it; "
        "write `import hooked_whisper.saes` (or `from hooked_whisper.saes import ...`) instead."
    )

# Public name -> module, loaded on first use. A module must not be called like a name that is exported here: once it is
# imported, `from hooked_whisper.saes import name` would give the module.
_EXPORTS = {
    "Corpus": "corpus",
    "ActivationStore": "store",
    "ActivationSource": "source",
    "harvest": "harvesting",
    "stream": "harvesting",
    "fetch_prompts": "prompts",
    "train_sae": "training",
    "train_saes": "training",
    "evaluate_sae": "evaluation",
    "finetune_sae": "finetuning",
    "measure_sensitivity": "sensitivity",
    "Sensitivity": "sensitivity",
    "ensemble_saes": "ensembles",
    "load_sae": "hub",
    "publish_sae": "hub",
    "import_audiosae": "importers",
    "import_freud": "importers",
}

__all__ = [*_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from hooked_whisper.saes.corpus import Corpus as Corpus
    from hooked_whisper.saes.ensembles import ensemble_saes as ensemble_saes
    from hooked_whisper.saes.evaluation import evaluate_sae as evaluate_sae
    from hooked_whisper.saes.finetuning import finetune_sae as finetune_sae
    from hooked_whisper.saes.harvesting import harvest as harvest
    from hooked_whisper.saes.harvesting import stream as stream
    from hooked_whisper.saes.hub import load_sae as load_sae
    from hooked_whisper.saes.hub import publish_sae as publish_sae
    from hooked_whisper.saes.importers import import_audiosae as import_audiosae
    from hooked_whisper.saes.importers import import_freud as import_freud
    from hooked_whisper.saes.prompts import fetch_prompts as fetch_prompts
    from hooked_whisper.saes.sensitivity import Sensitivity as Sensitivity
    from hooked_whisper.saes.sensitivity import measure_sensitivity as measure_sensitivity
    from hooked_whisper.saes.source import ActivationSource as ActivationSource
    from hooked_whisper.saes.store import ActivationStore as ActivationStore
    from hooked_whisper.saes.training import train_sae as train_sae
    from hooked_whisper.saes.training import train_saes as train_saes


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"hooked_whisper.saes.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'hooked_whisper.saes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
