"""A draft that only looks up, at work in the hub's own process.

What it has to say takes it microseconds. From another process its word would take ten times as
long to come: two sockets, and a process to wake, while the target idles.

It keeps to the draft's protocol; the coordinator does not know that it is near.
"""

from dataclasses import dataclass

from specpipe.drafting.drafter import Sources
from specpipe.exhaustion import failure
from specpipe.logs import log_of
from specpipe.story import tell
from specpipe.worker_messages import Close, Commit, Failed, FromWorker, Open, Ready
from specpipe.workers.draft import Draft

_INCARNATION = 1  # there is no other: it ends with the hub


@dataclass(frozen=True, slots=True)
class NearDraftConfig:
    """What such a draft is told when it starts.

    Attributes:
        num_slots: requests that it follows at once.
        context_length: most tokens of a chain.
        vocab_size: number of token ids.
        remember: tokens of past outputs to look up in; 0: none.
        device: the name of the cores that it shares with the target.
    """

    num_slots: int
    context_length: int
    vocab_size: int
    remember: int
    device: str


class NearDraft:
    """Takes what is meant for the draft, and says what it answers, one step at a time.

    Args:
        config: see there.
        cores: that the hub runs on.
    """

    def __init__(self, config: NearDraftConfig, cores: tuple[int, ...]) -> None:
        sources = Sources(
            None, lookup=True, remember=config.remember, context_length=config.context_length
        )
        self._draft = Draft(sources, _INCARNATION)
        self._said: list[FromWorker] = [
            Ready(
                "draft",
                _INCARNATION,
                config.num_slots,
                config.context_length,
                config.vocab_size,
                config.device,
                cores,
                sources.names,
            )
        ]
        self._log = log_of("draft")

    @property
    def idle(self) -> bool:
        """Whether `step` would find nothing to do."""
        return not self._said and self._draft.idle

    def hear(self, message: Open | Commit | Close) -> None:
        """Take a message; what it leads to comes with the next steps."""
        tell(self._log, message)
        try:
            self._said += self._draft.handle(message)
        except Exception as error:  # the hub must not end of it
            cause = failure("draft", error)
            self._said.append(Failed("draft", message.request, _INCARNATION, cause))

    def step(self) -> list[FromWorker]:
        """What it says next: look-ups for one sequence at most, so that nobody waits long."""
        said, self._said = self._said, []
        while not said and not self._draft.idle:
            said = self._draft.step()
        for message in said:
            tell(self._log, message)
        return said
