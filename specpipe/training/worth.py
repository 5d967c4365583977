"""What a draft is worth: not how often it is right, but how fast the pair is expected to be."""

from collections.abc import Sequence
from dataclasses import dataclass

from specpipe.bench.passes import ROWS, pass_seconds
from specpipe.models.decoder import Decoder
from specpipe.policy_comparison import Scene, compare
from specpipe.simulated_workers import Hardware

_CONTEXT = 200
_TOKENS = 4000  # of a simulation


@dataclass(frozen=True, slots=True)
class Expected:
    """Tokens per second relative to the target alone.

    Attributes:
        pipelined: what the dispatch rule reaches on two devices.
        serial: drafting and verifying in turn, with the best draft length.
        length: that length.
    """

    pipelined: float
    serial: float
    length: int


def time_pair(target: Decoder, draft: Decoder) -> Hardware:
    """How long a guess and passes take, each model alone on its device."""
    seconds = []
    for model, sizes in ((draft, (1,)), (target, ROWS)):
        slot = model.open()
        context = min(_CONTEXT, model.context_length - max(sizes))
        seconds.append(pass_seconds(model, slot, context, sizes))
        model.close(slot)
    return Hardware(seconds[0][1], tuple(sorted(seconds[1].items())))


def expect(hardware: Hardware, guesses: Sequence[tuple[float, bool]]) -> Expected:
    """What the simulator makes of a draft's guesses.

    Args:
        hardware: how long things take.
        guesses: one for each token of some answers, in order: its confidence, and whether it would
            have been right.
    """
    acceptance = sum(right for _, right in guesses) / len(guesses)
    scene = Scene(hardware, acceptance, tuple(guesses))
    ((pipelined, serial),) = compare([scene], ("elastic", "serial"), tokens=_TOKENS)
    return Expected(pipelined.speedup, serial.speedup, serial.setting or 0)
