"""`specpipe completion`: the script that makes a shell complete our commands."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_SPECPIPE_COMPLETE"  # what click looks for


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    r"""Print the script that makes SHELL complete commands, options, models and other values.

    \b
    To have it in every new shell:
      bash: add to ~/.bashrc  eval "$(specpipe completion bash)"
      zsh:  add to ~/.zshrc   eval "$(specpipe completion zsh)"
      fish: specpipe completion fish > ~/.config/fish/completions/specpipe.fish

    Example: eval "$(specpipe completion bash)"
    """
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(context.find_root().command, {}, "specpipe", _VARIABLE).source())
