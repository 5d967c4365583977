"""How much of a text a model reads at once."""

_SHARE = 8


def reading_part(chunk: int, *, beside_others: bool) -> int:
    """Most tokens of a text in one pass: `chunk`, or fewer while others write.

    They wait for that pass, too: nobody is to be stalled by a newcomer's long prompt.
    """
    return max(1, chunk // _SHARE) if beside_others else chunk
