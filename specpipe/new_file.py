"""Files that a run writes: made before it starts, so that a bad path costs nothing."""

from pathlib import Path

from specpipe.errors import UserError


def new_file(path: str, kind: str) -> str:
    """Make an empty file, or empty the one there is; returns its absolute path.

    Raises:
        UserError: if it can't be written; `kind` says what it was to be, such as "a trace".
    """
    try:
        Path(path).write_bytes(b"")
    except OSError as error:
        raise UserError(
            f"cannot write {kind} to {path}: {error.strerror or error}; name another file"
        ) from None
    return str(Path(path).resolve())
