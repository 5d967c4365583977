"""When a completion ends."""

from collections.abc import Collection, Sequence
from typing import Literal

FinishReason = Literal["stop", "length", "abort", "error"]


def cut_at_stop(
    tokens: Sequence[int], left: int, stop_token_ids: Collection[int]
) -> tuple[Sequence[int], FinishReason | None]:
    """The part of `tokens` that token-by-token decoding would have written, and why it ended there.

    Args:
        tokens: newly decided tokens, in order.
        left: how many the request may still write (max_tokens and context), at least 1.
        stop_token_ids: an end token is itself part of the output ids.

    Returns:
        The tokens up to the end, and the reason, or None while the request goes on.
    """
    for i, token in enumerate(tokens):
        if token in stop_token_ids:
            return tokens[: i + 1], "stop"
        if i + 1 >= left:
            return tokens[: i + 1], "length"
    return tokens, None
