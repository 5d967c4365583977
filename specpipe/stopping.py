"""When a completion ends: at an end token, at a stop text, at max_tokens, at the context's end."""

from collections.abc import Collection, Sequence
from typing import Literal, get_args

FinishReason = Literal["stop", "length", "abort", "error"]
FINISH_REASONS: tuple[FinishReason, ...] = get_args(FinishReason)


class StopTexts:
    """Looks for texts in an answer that comes in pieces.

    It works on UTF-8 bytes: tokens are strings of bytes, and no character's bytes occur within
    another's. The coordinator asks it where to stop, the reader what may be shown.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = [text.encode() for text in texts]
        self._held = b""
        self.found = False

    def push(self, piece: bytes) -> bytes:
        """Take the next piece; return what of the answer is certain by now.

        That is all up to the first stop text, once there is one (of several, the one that begins
        first); until then all but an end that a stop text might begin with.
        """
        if self.found:
            return b""
        self._held += piece
        begins = [at for text in self._texts if (at := self._held.find(text)) >= 0]
        self.found = bool(begins)
        end = min(begins) if begins else len(self._held) - self._undecided()
        certain, self._held = self._held[:end], self._held[end:]
        return certain

    def flush(self) -> bytes:
        """Return what was held back, as the answer goes no further."""
        held, self._held = self._held, b""
        return b"" if self.found else held

    def _undecided(self) -> int:
        """Bytes at the end that a stop text might begin with."""
        longest = min(len(self._held), max(map(len, self._texts), default=1) - 1)
        return next(
            (
                count
                for count in range(longest, 0, -1)
                if any(text.startswith(self._held[-count:]) for text in self._texts)
            ),
            0,
        )


class StopRule:
    """Where one answer ends, as token-by-token decoding would have ended it.

    Args:
        stop_token_ids: tokens that end it; they are part of its ids.
        stop: texts that end it.
        token_bytes: what each token adds to the text, by id; ids beyond it add nothing.
    """

    def __init__(
        self,
        stop_token_ids: Collection[int],
        stop: Sequence[str] = (),
        token_bytes: Sequence[bytes] = (),
    ) -> None:
        self._stop_token_ids = stop_token_ids
        self._texts = StopTexts(stop) if stop else None
        self._token_bytes = token_bytes

    def cut(self, tokens: Sequence[int], left: int) -> tuple[Sequence[int], FinishReason | None]:
        """The part of newly decided tokens that is still written, and why it ended there.

        Args:
            tokens: the next ones, in order; each is shown to this object once.
            left: how many the request may still write (max_tokens and context), at least 1.

        Returns:
            The tokens up to the end, and the reason, or None while the request goes on.
        """
        for i, token in enumerate(tokens):
            if token in self._stop_token_ids or self._ends_text(token):
                return tokens[: i + 1], "stop"
            if i + 1 >= left:
                return tokens[: i + 1], "length"
        return tokens, None

    def _ends_text(self, token: int) -> bool:
        if self._texts is None:
            return False
        if token < len(self._token_bytes):
            self._texts.push(self._token_bytes[token])
        return self._texts.found
