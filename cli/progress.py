"""How far long work is, on standard error: a line that changes, or one now and then in a log."""

import sys
import time

import click

_ON_SCREEN_S, _IN_LOG_S = 0.2, 30.0


class Progress:
    """Shows stages one after the other, with the time that each has left."""

    def __init__(self) -> None:
        self._on_screen = sys.stderr.isatty()
        self._stage, self._begun, self._first, self._shown = "", 0.0, 0.0, 0.0

    def __call__(
        self, stage: str, share: float | None, line: str, seconds_left: float | None = None
    ) -> None:
        """Show a stage's name, the share of it that is done, if that is known, and a line on it.

        The time that is left is reckoned by the share, unless `seconds_left` knows better.
        """
        now = time.monotonic()
        if stage != self._stage:
            self.end()
            self._stage, self._begun, self._first, self._shown = stage, now, share or 0.0, 0.0
        elif now - self._shown < (_ON_SCREEN_S if self._on_screen else _IN_LOG_S) and share != 1:
            return
        self._shown = now
        done = "" if share is None else f" {share:4.0%}, {self._left(now, share, seconds_left)}"
        text = f"{stage}{done or ', '}{line}"
        click.echo(f"\r\x1b[K{text}" if self._on_screen else text, err=True, nl=not self._on_screen)

    def end(self) -> None:
        """Leave the last line as it stands."""
        if self._stage and self._on_screen:
            click.echo(err=True)
        self._stage = ""

    def _left(self, now: float, share: float, known: float | None) -> str:
        """What an earlier run did was not done in this one's time."""
        done = share - self._first
        if share >= 1 or (known is None and done <= 0):
            return ""
        left = (now - self._begun) * (1 - share) / done if known is None else known
        minutes, seconds = divmod(round(left), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02} left, "
