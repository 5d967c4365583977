"""Texts that a target wrote, played again with look-ups and the dispatch rule, without any model.

What a rule gains from knowing each guess's chance rather than the mean of all shows here without
the noise of a machine: a pass takes 1 + row_cost * m, and all else is real.
"""

from collections.abc import Sequence
from typing import NamedTuple

from specpipe.drafting.drafter import Sources
from specpipe.elastic import Elastic
from specpipe.policy import Judged, Situation, Verified
from tests.toys import sampling


class Text(NamedTuple):
    """A prompt, and what the target wrote after it."""

    prompt: Sequence[int]
    answer: Sequence[int]


class OneChance(Elastic):
    """The rule, told nothing of a guess but the mean chance of all."""

    def decide(self, situation: Situation):
        situation.confidences = [0.5] * len(situation.confidences)
        return super().decide(situation)

    def judged(self, guesses: Sequence[Judged]) -> None:
        super().judged([guess._replace(confidence=0.5) for guess in guesses])


def speed(texts: Sequence[Text], policy: Elastic, row_cost: float) -> float:
    """Tokens by time, relative to one token a pass."""
    longest = max(len(text.prompt) + len(text.answer) for text in texts)
    sources = Sources(None, lookup=True, context_length=longest + 1)
    tokens = seconds = 0.0
    for text in texts:
        for guesses, committed in _play(text, sources, policy, row_cost):
            tokens += committed
            seconds += 1 + row_cost * guesses
    return tokens / seconds


def _play(text: Text, sources: Sources, policy: Elastic, row_cost: float):
    """One answer; yields how many guesses each pass judged, and how many tokens it committed."""
    truth = [*text.prompt, *text.answer]
    drafter = sources.open(sampling())
    chain, waiting, known = list(text.prompt), list[float](), len(text.prompt)
    while known < len(truth):
        room = min(64, len(truth) - 1 - known) - len(waiting)
        found = drafter.look_up(chain, room, may_compute=False)
        chain += [proposal.guess.token for proposal in found]
        waiting += [proposal.guess.confidence for proposal in found]
        largest = len(truth) - known - 1
        count = policy.decide(Situation(list(waiting), largest, may_wait=False)).send or 0
        same = known
        while same < len(chain) and same < len(truth) and chain[same] == truth[same]:
            same += 1
        accepted = min(same - known, count)
        end = known + accepted + 1
        told = range(known, min(len(chain), max(end, same + 1) if same < end else end))
        judged = [
            Judged(0, at, 0, waiting[at - known], at < same if at <= same else None, 0.0, 0.0)
            for at in told
        ]
        policy.verified(Verified(0, count, accepted, 1 + row_cost * count, alone=True))
        policy.judged(judged)
        policy.reflect()
        drafter.settle(known, truth[known : min(end, same + 1)])
        if same < end:
            drafter.truncate(same)
            chain[:], waiting = truth[:end], []
        else:
            waiting = waiting[end - known :]
        yield count, end - known
        known = end
    drafter.close()
