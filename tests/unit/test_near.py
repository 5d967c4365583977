"""The draft that is part of the hub: the same protocol, without sockets between."""

import queue
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from specpipe.channel import Channel, socket_directory, worker_address
from specpipe.hub_client import HubClient
from specpipe.messages import Attach, Finish, Submit, Tokens
from specpipe.worker_messages import (
    Block,
    Close,
    Closed,
    Exhausted,
    Extend,
    Failed,
    FromWorker,
    Open,
    Opened,
    Ready,
    Verdict,
)
from specpipe.workers.draft import Draft
from specpipe.workers.near import NearDraft, NearDraftConfig
from tests.toys import sampling

CONFIG = NearDraftConfig(2, 64, 5, 0, "cpu:0")
PROMPT = (1, 2, 3, 1, 2, 3, 1, 2)


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_directory() as directory:
        yield directory


def opening(request: int = 1) -> Open:
    return Open(request, 1, PROMPT, len(PROMPT), 20, 20, sampling())


def all_of(draft: NearDraft) -> list[FromWorker]:
    said: list[FromWorker] = []
    while not draft.idle:
        said += draft.step()
    return said


def test_it_says_what_a_draft_says_and_then_rests() -> None:
    """A draft that never rests would keep the hub from sleeping, and take the target's core."""
    draft = NearDraft(CONFIG, (0,))
    assert draft.step() == [Ready("draft", 1, 2, 64, 5, "cpu:0", (0,), ("ngram",))]
    assert draft.idle
    draft.hear(opening())
    said = all_of(draft)
    assert said[0] == Opened(1, 1)
    guessed = [token for each in said if isinstance(each, Block) for token in each.tokens]
    assert guessed[:4] == [3, 1, 2, 3]
    assert isinstance(said[-1], Exhausted)
    assert draft.step() == []
    draft.hear(Close(1))
    assert all_of(draft) == [Closed("draft", 1, 1)]


def test_each_step_is_for_one_sequence_alone() -> None:
    """Looking up for all of them at once, the hub would let a verdict wait."""
    draft = NearDraft(CONFIG, (0,))
    draft.step()
    draft.hear(opening(1))
    draft.hear(opening(2))
    steps = []
    while not draft.idle:
        steps.append({message.request for message in draft.step()})
    assert {1} in steps
    assert {2} in steps
    assert {1, 2} not in steps


def test_its_trouble_ends_the_drafting_of_one_request_and_not_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a process of its own a draft may die; here all requests would end with it."""
    draft = NearDraft(CONFIG, (0,))
    draft.step()

    def fail(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr(Draft, "handle", fail)
    draft.hear(opening())
    (failed,) = draft.step()
    assert isinstance(failed, Failed)
    assert (failed.role, failed.request) == ("draft", 1)


def test_the_hub_reports_it_ready_and_sends_its_guesses(folder: Path) -> None:
    """A draft that nobody hears guesses for nothing, and no output shows it."""
    settings = {"policy": "take_all", "lookahead": 8, "prefill_chunk": 16, "wait_timeout_s": 1.0}
    hub = HubClient(folder, (), settings | {"near_draft": asdict(CONFIG)})
    reported: queue.SimpleQueue[Ready] = queue.SimpleQueue()
    updates: queue.SimpleQueue[Tokens | Finish] = queue.SimpleQueue()
    hub.start(reported.put)
    ready = reported.get(timeout=10)
    assert (ready.role, ready.sources) == ("draft", ("ngram",))
    hub.post(Attach("target", 1, worker_address(folder, "target", 1)))
    target = Channel.connect(worker_address(folder, "target", 1))
    target.send(Ready("target", 1, 1, 64, 5, "cpu", (0,)))
    reported.get(timeout=10)
    hub.submit(Submit(1, PROMPT, 4, sampling()), updates.put)
    (extend,) = target.receive(10.0)
    assert isinstance(extend, Extend)
    target.send(Verdict(1, 1, extend.extend_id, 0, 3, 0.0, 1.0, 0.0))
    (extend,) = target.receive(10.0)
    assert isinstance(extend, Extend)
    assert extend.tokens == (3, 1, 2)
    target.send(Verdict(1, 1, extend.extend_id, 2, 3, 1.0, 2.0, 0.0))
    updates.get(timeout=10)
    updates.get(timeout=10)
    finish = updates.get(timeout=10)
    assert isinstance(finish, Finish)
    assert (finish.metrics.accepted, finish.metrics.ngram.accepted) == (2, 2)
    assert finish.metrics.timeouts == finish.metrics.protocol_errors == 0
    hub.close()
    target.close()
