"""Folders of sockets that a dead host left behind: the next pipeline that starts removes them.

Where a hub is at work, somebody listens at its socket. Where nobody does, its program was killed
together with it, and nobody is left who would clean up.
"""

import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path

FOLDER_PREFIX = "specpipe-"
"""How the names of pipelines' folders begin, in the temporary folder."""

HUB = "hub"
"""The socket of the hub, in such a folder."""

YOUNG_S = 600.0
"""An empty folder that is younger may be one whose hub is still starting."""


def pipeline_folders() -> list[Path]:
    """The folders of this user's pipelines, whether or not they are alive."""
    found = []
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*"):
        with suppress(OSError):  # it has just been removed, or can't be read
            if _is_ours(folder):
                found.append(folder)
    return found


def sweep() -> list[Path]:
    """Remove the folders of this user in which nobody listens any more; returns them."""
    swept = []
    for folder in pipeline_folders():
        with suppress(OSError):
            if _is_abandoned(folder):
                shutil.rmtree(folder)
                swept.append(folder)
    return swept


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder of this user, and not a link that somebody laid out."""
    return folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid()


def _is_abandoned(folder: Path) -> bool:
    if (folder / HUB).is_socket():
        return not _answers(folder / HUB)
    return not any(folder.iterdir()) and time.time() - folder.stat().st_mtime > YOUNG_S


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:  # it is too busy to say
            return True
    return True
