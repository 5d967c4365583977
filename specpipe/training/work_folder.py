"""Where what is being made is kept until it is there: a hidden folder beside its future place.

Work that was interrupted goes on from there, if the same is asked for again.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specpipe.errors import UserError
from specpipe.json_file import read_object
from specpipe.training.shards import write_atomically

_RECIPE = "recipe.json"


def open_work(folder: Path, kind: str, recipe: Mapping[str, Any], begun: str = _RECIPE) -> Path:
    """The folder for the work on `folder`: `.KIND-NAME` beside it, made if need be.

    Args:
        folder: what is being made.
        kind: of work.
        recipe: what can't change on the way, plain values by name.
        begun: file in it that is there once something is bound to the recipe.

    Raises:
        UserError: if it holds work by another recipe, or can't be made.
    """
    work = folder.with_name(f".{kind}-{folder.name}")
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {work} ({error.strerror or error}): choose another folder with "
            "--models-dir"
        ) from None
    path = work / _RECIPE
    if not path.exists() or not (work / begun).exists():
        write_atomically(path, json.dumps(recipe).encode())
        return work
    before = read_object(path)
    for name, value in recipe.items():
        # As JSON has it: what was a tuple is a list.
        if (given := json.loads(json.dumps(value))) != (earlier := before.get(name)):
            raise UserError(
                f"{name} is {given!r:.60}, and {work} holds work with {earlier!r:.60}: ask for the "
                "same, or remove that folder"
            )
    return work
