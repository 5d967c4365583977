"""Several sequences in one pass of the target: one forward, each its own answer."""

from collections.abc import Sequence

from specpipe.models.interface import Feed, Interrupted, Logits
from specpipe.worker_messages import Extend, Failed, Progress, Verdict
from specpipe.workers.target import Target
from tests.toys import TargetLaw, ToyModel, decode_plain, sampling

GREEDY = sampling()
LAW = TargetLaw(7)
PROMPTS = ((1, 2, 3), (4, 1), (2, 2, 2, 1))


class Counting(ToyModel):
    """Counts the sequences of each pass."""

    def __init__(self) -> None:
        super().__init__(LAW, num_slots=4)
        self.passes: list[int] = []

    def forward_all(
        self, feeds: Sequence[Feed], interrupted: Interrupted = None
    ) -> list[Logits] | None:
        self.passes.append(len(feeds))
        return super().forward_all(feeds, interrupted)


def together(target: Target, *extends: Extend) -> list[object]:
    """The answers on extends that form one pass."""
    return [answer for extend in extends for answer in target.handle(extend)]


def extend(request: int, tokens: tuple[int, ...], *, more: bool, start: int = 0) -> Extend:
    return Extend(request, request, start, tokens, len(PROMPTS[request]), GREEDY, more=more)


def first(request: int) -> int:
    return decode_plain(LAW, PROMPTS[request], GREEDY, 1)[0][0]


def test_each_gets_the_verdict_that_it_would_get_alone() -> None:
    """Rows handed to the wrong sequence; or a pass for each, no faster than one after the other."""
    model = Counting()
    target = Target(model, 1)
    guess = first(1)
    answers = together(
        target,
        extend(0, PROMPTS[0], more=True),
        extend(1, (*PROMPTS[1], guess), more=True),
        extend(2, PROMPTS[2][:2], more=False),
    )
    judged, block, read = answers
    assert isinstance(judged, Verdict)
    assert (judged.request, judged.accepted, judged.token) == (0, 0, first(0))
    assert isinstance(block, Verdict)
    follows = decode_plain(LAW, PROMPTS[1], GREEDY, 2)[0][1]
    assert (block.request, block.accepted, block.token) == (1, 1, follows)
    assert isinstance(read, Progress)
    assert (read.request, read.length) == (2, 2)
    assert model.passes == [3]


def test_one_that_cannot_take_part_does_not_fail_the_others() -> None:
    target = Target(Counting(), 1)
    wrong, right = together(
        target, extend(0, PROMPTS[0][1:], start=1, more=True), extend(1, PROMPTS[1], more=False)
    )
    assert isinstance(wrong, Failed)
    assert isinstance(right, Verdict)
    assert right.token == first(1)


def test_a_pass_that_fails_is_made_again_one_by_one() -> None:
    """A device that has no room for all at once would end every request."""
    model = Counting()
    target = Target(model, 1)
    model.fails_shared = True
    answers = together(target, *(extend(i, PROMPTS[i], more=i < 2) for i in range(3)))
    assert [answer.token for answer in answers if isinstance(answer, Verdict)] == [
        first(0),
        first(1),
        first(2),
    ]
    assert model.passes == [3, 1, 1, 1]
