"""What the shell offers for an option's value; what else may be given is left to the user."""

from collections.abc import Callable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from specpipe.models.store import list_models, models_dir

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def one_of(*values: str) -> Complete:
    """Offer fixed values."""

    def offer(
        context: click.Context, parameter: click.Parameter, begun: str
    ) -> list[CompletionItem]:
        return [CompletionItem(value) for value in values if value.startswith(begun)]

    return offer


def model_name(*others: str) -> Complete:
    """Offer the names of installed models, and other values; files, once a path is begun."""

    def offer(
        context: click.Context, parameter: click.Parameter, begun: str
    ) -> list[CompletionItem]:
        if "/" in begun or begun.startswith("."):
            return [CompletionItem(begun, type="file")]
        given = context.params.get("models_dir")
        try:
            found = list_models(models_dir(Path(given) if given else None))
        except OSError:  # a folder that we may not read
            found = []
        names = [*(files.name for files in found), *others]
        return [CompletionItem(name) for name in names if name.startswith(begun)]

    return offer
