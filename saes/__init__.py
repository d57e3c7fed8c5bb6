"""Sparse autoencoders on Whisper: harvest activations, store them, train, evaluate, publish.

Import it as `hooked_whisper.saes`.
"""

if __name__ != "hooked_whisper.saes":  # at the repository's root Python also finds this folder under its bare name
    raise ImportError(
        f"this package was imported as {__name__!r}, which would be a second copy of it; "
        "write `import hooked_whisper.saes` (or `from hooked_whisper.saes import ...`) instead."
    )
