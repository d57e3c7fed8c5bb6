"""Interpretability on top of the hooked model: functions over a model and its cache.

Import it as `hooked_whisper.analysis`.
"""

if __name__ != "hooked_whisper.analysis":  # at the repository's root Python also finds this folder under its bare name
    raise ImportError(
        f"this package was imported as {__name__!r}, which would be a second copy of it; "
        "write `import hooked_whisper.analysis` (or `from hooked_whisper.analysis import ...`) instead."
    )
