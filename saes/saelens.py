"""SAELens, which an extra brings and which takes seconds to import."""

from __future__ import annotations

import warnings
from types import ModuleType

from hooked_whisper.errors import MissingExtraError


def import_saelens() -> ModuleType:
    """`sae_lens`, imported when this is called.

    Raises:
        MissingExtraError: it is not installed.
    """
    with warnings.catch_warnings():  # it imports a module that TransformerLens has moved
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            import sae_lens
        except ImportError as error:
            raise MissingExtraError(
                "Training and loading sparse autoencoders needs SAELens, which cannot be imported: "
                "pip install 'hooked-whisper[train]'."
            ) from error
    return sae_lens
