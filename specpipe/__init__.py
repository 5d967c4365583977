"""specpipe: lossless speculative decoding in which drafting and verifying run at once.

The library knows neither Ray nor a command line; `specpipe.actors` places its parts on devices
and `specpipe.cli` puts them behind a command.
"""

from specpipe.version import __version__

__all__ = ["__version__"]
