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
    "load_sae": "hub",
    "publish_sae": "hub",
    "import_audiosae": "importers",
    "import_freud": "importers",
}

__all__ = [*_EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from hooked_whisper.saes.source import ActivationSource as ActivationSource


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(importlib.import_module(f"hooked_whisper.saes.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'hooked_whisper.saes' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
