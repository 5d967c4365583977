"""The two ways to run a model, by name: our own decoder, or whatever transformers has for it."""

from pathlib import Path
from typing import Any

from specpipe.errors import UserError
from specpipe.exhaustion import REMEDY, is_exhaustion
from specpipe.models.interface import SequenceModel


def load(backend: str, path: Path, **settings: Any) -> SequenceModel:
    """Load a model.

    Args:
        backend: one of specpipe.config.BACKENDS.
        path: where it lies.
        settings: as for `load_model`.

    Raises:
        UserError: if it, or what is asked of it, can't be had, or it does not fit into memory.
    """
    try:
        return _load(backend, path, **settings)
    except Exception as error:
        if not is_exhaustion(error):
            raise
        device = settings.get("device", "cpu")
        raise UserError(f"{path} does not fit into the memory of {device}: {REMEDY}") from error


def _load(backend: str, path: Path, **settings: Any) -> SequenceModel:
    # Neither is imported without need: they are slow to import.
    if backend == "specpipe":
        from specpipe.models.loader import load_model  # noqa: PLC0415

        return load_model(path, **settings)
    if settings.pop("head_tokens", 0):
        raise UserError("head_tokens are for the backend specpipe alone: leave them out")
    for own in ("kept_tokens", "narrow"):
        settings.pop(own, None)
    from specpipe.models.transformers_model import load_transformers  # noqa: PLC0415

    return load_transformers(path, **settings)
