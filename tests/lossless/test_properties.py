"""Whatever is guessed, cut into blocks and asked for: the output is that of plain decoding.

Hypothesis chooses everything: the law, the guesses (right, wrong or none), the block sizes, the
sampling and the stops; and shrinks what fails to the smallest example.
"""

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from specpipe.coordinator import Coordinator
from specpipe.dispatch import TakeAll
from specpipe.events import Event, Send
from specpipe.messages import Finish, Submit, Tokens, Vocabulary
from specpipe.sampler import Sampler
from specpipe.sampling import Sampling
from specpipe.worker_messages import Block, Commit, Exhausted, Extend, Open, Opened, Ready
from specpipe.workers.target import Target
from tests.toys import TOKEN_BYTES, VOCABULARY, TargetLaw, ToyModel, decode_plain, sampling

PROMPT = (1, 2, 3)
Script = list[tuple[bool, list[bool]]]

SAMPLINGS = st.builds(
    lambda options, stop, seed: sampling(
        seed=seed, stop=stop, prompt_length=len(PROMPT), **options
    ),
    st.fixed_dictionaries(
        {"temperature": st.sampled_from((0.0, 0.7, 1.5))},
        optional={
            "top_k": st.integers(1, 4),
            "top_p": st.floats(0.1, 1.0),
            "min_p": st.floats(0.0, 0.5),
            "repetition_penalty": st.floats(0.5, 3.0),
            "frequency_penalty": st.floats(-2.0, 2.0),
            "presence_penalty": st.floats(-2.0, 2.0),
        },
    ),
    st.sampled_from(((), (0,), (4,), (0, 3))),
    st.integers(0, 2**63 - 1),
)
STOPS = st.sampled_from(((), ("a",), ("ab",), ("é",), ("bb", "aba"), ("aéa",)))


SCRIPTS = st.lists(st.tuples(st.booleans(), st.lists(st.booleans(), max_size=5)), max_size=12)
"""What the draft does, one entry a time that it is given: whether before the verdict that is due
(ahead of it), or after; and its guesses: True is the right token, False a wrong one."""


class Scripted:
    """A draft that guesses right and wrong as it is told."""

    def __init__(self, law: TargetLaw, params: Sampling, script: Script) -> None:
        self._law, self._params, self._script = law, params, list(script)
        self._serial = self._limit = 0

    def hear(self, message: Open | Commit) -> None:
        self._serial = message.serial if isinstance(message, Open) else message.last_serial
        self._limit = message.limit

    @property
    def early(self) -> bool:
        return bool(self._script) and self._script[-1][0]

    def speak(self, chain: Sequence[int]) -> Block | Exhausted:
        """Guesses that continue the chain, or that there are none before the next commit."""
        ids = list(chain)
        for right in self._script.pop()[1] if self._script else []:
            if len(ids) < self._limit:
                true = Sampler(self._params).choose(self._law(ids), len(ids), ids)
                ids.append(true if right else (true + 1) % VOCABULARY)
        tokens = tuple(ids[len(chain) :])
        if not tokens:
            return Exhausted(0, 1, self._serial, "limit")
        times, confidences = (0.0,) * len(tokens), (0.5,) * len(tokens)
        return Block(
            0,
            1,
            self._serial,
            len(chain),
            tokens,
            confidences,
            ("model",) * len(tokens),
            times,
            times,
        )


def play(submit: Submit, law: TargetLaw, script: Script, context: int) -> tuple[list[int], Finish]:
    """The real coordinator and target with a scripted draft; what is written, and the finish."""
    coordinator = Coordinator(TakeAll(), prefill_chunk=2)
    target = Target(ToyModel(law, context_length=context), 1)
    draft, written = Scripted(law, submit.sampling, script), list[int]()
    events: list[Event] = [
        Vocabulary(TOKEN_BYTES),
        Ready("draft", 1, 1, context, VOCABULARY, "cpu", (), ("model",)),
        Ready("target", 1, 1, context, VOCABULARY, "cpu", ()),
        submit,
        Opened(0, 1),
    ]
    for _ in range(1000):
        if not events:
            events.append(draft.speak(coordinator.sequences[0].chain()))
        commands = coordinator.handle(events.pop(0), 0.0)
        for command in commands:
            match command:
                case Send("draft", _, message) if isinstance(message, Open | Commit):
                    draft.hear(message)
                case Send("target", _, message) if isinstance(message, Extend):
                    if draft.early:
                        events.append(draft.speak(coordinator.sequences[0].chain()))
                    events += target.handle(message)
                case Tokens():
                    written += command.tokens
                case Finish():
                    return written, command
    raise AssertionError("no finish")


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.integers(0, 50),
    SAMPLINGS,
    STOPS,
    st.integers(1, 12),
    st.integers(5, 20),
    SCRIPTS,
)
def test_output_is_that_of_plain_decoding(
    seed: int,
    params: Sampling,
    stop: tuple[str, ...],
    max_tokens: int,
    context: int,
    script: Script,
) -> None:
    """Any combination that nobody thought of."""
    law = TargetLaw(seed, eos_percent=5)
    submit = Submit(0, PROMPT, max_tokens, params, stop)
    written, finish = play(submit, law, script, context)
    expected = decode_plain(law, PROMPT, params, max_tokens, context_length=context, stop=stop)
    assert (written, finish.reason) == expected
    assert finish.metrics.completion_tokens == len(written)
    assert finish.metrics.accepted <= len(written)
    assert sum(map(len, finish.metrics.blocks)) == finish.metrics.sent


def test_examples_reach_what_they_are_for() -> None:
    """A generator that never makes a rollback, a bonus or a stop within a block proves nothing."""
    law, params = TargetLaw(3), sampling(prompt_length=len(PROMPT))
    script: Script = [(False, [True] * 3), (True, [True, False]), (False, [True] * 4)][::-1]
    written, finish = play(Submit(0, PROMPT, 12, params), law, script, 30)
    assert finish.metrics.accepted >= 4
    assert finish.metrics.rollbacks >= 1
    assert finish.metrics.mean_acceptance_length is not None
    assert finish.metrics.mean_acceptance_length > 1.5
    text = b"".join(TOKEN_BYTES[token] for token in written[:3]).decode(errors="ignore")
    short, finish = play(Submit(0, PROMPT, 12, params, (text[-1],)), law, script, 30)
    assert finish.reason == "stop"
    assert len(short) <= 3
