"""What the protocol promises, checked by looking into all parts of a virtual World at once."""

from typing import TYPE_CHECKING

from specpipe.codec import decode, encode
from specpipe.messages import Finish, Tokens
from specpipe.metrics import RequestMetrics
from specpipe.pace import DraftState
from specpipe.sampler import Guess, Sampler
from specpipe.sampling import GuessLaw
from specpipe.sequence import SequenceState
from specpipe.worker_messages import Block, Extend, Proceed, Verdict
from specpipe.workers.draft import Draft, _Chain
from tests.toys import EOS, end_of

if TYPE_CHECKING:
    from tests.actors import DraftActor, TargetActor
    from tests.virtual import World

OPENED = {DraftState.OPENING, DraftState.OPEN}


def check_tokens(world: "World", tokens: Tokens) -> None:
    """Each position once, in order, and what plain decoding says."""
    submit, user = world.submitted[tokens.request], world.user[tokens.request]
    assert tokens.request not in world.finished, "tokens after the finish"
    assert tokens.start == len(submit.tokens) + len(user), "a position doubled or skipped"
    user += tokens.tokens
    if not submit.sampling.rejects:
        assert user == world.plain[tokens.request][0][: len(user)], "not what plain decoding says"


def check_finish(world: "World", finish: Finish) -> None:
    """Once, with the right reason, after the whole text."""
    request = finish.request
    assert request not in world.finished, "finished twice"
    world.finished[request] = finish
    world.seen[finish.reason] += 1
    if finish.reason == "error":
        assert "target" in world.dead or "times in a row" in finish.cause, finish.cause
    elif finish.reason == "abort":
        assert request in world.aborted, "aborted by nobody"
    elif world.submitted[request].sampling.rejects:
        assert _ends(world, request) == [finish.reason], "not where token-by-token decoding ends"
    else:
        assert (world.user[request], finish.reason) == world.plain[request], "finished too early"
    _check_metrics(world, finish.metrics, len(world.user[request]))
    assert decode(encode(finish)) == finish


def _ends(world: "World", request: int) -> list[str]:
    """The reasons for which token-by-token decoding would have ended this text, as it came."""
    submit, written = world.submitted[request], world.user[request]
    most = min(submit.max_tokens, world.context["target"] - len(submit.tokens))
    beginnings = (written[:count] for count in range(1, len(written) + 1))
    ends = (end_of(b, submit.sampling.stop_token_ids, submit.stop, most) for b in beginnings)
    return [reason for reason in ends if reason]


def _check_metrics(world: "World", metrics: RequestMetrics, written: int) -> None:
    assert metrics.completion_tokens == written
    assert metrics.drafted >= metrics.sent >= metrics.accepted >= metrics.useful >= 0
    # Each verdict gives its accepted tokens and one more, unless the text ends before that one.
    assert 0 <= metrics.accepted + metrics.target_forwards - written <= 1, "a token uncounted"
    assert metrics.rollbacks <= metrics.target_forwards
    world.seen[f"{world.policy}: accepted"] += metrics.accepted
    for name in ("rollbacks", "accepted", "stale_blocks", "timeouts", "cached_tokens"):
        world.seen[name] += getattr(metrics, name)


def check_sequence(world: "World", sequence: SequenceState) -> None:
    """The target works, or a timer runs; and without faults nobody waits in vain."""
    held = world.coordinator.workers["target"].held
    if sequence.request in held:
        others = world.coordinator.sequences.values()
        stirs = any(other.extend or other.timer is not None for other in others)
        assert stirs, "stuck: the target is idle, and no timer runs"
    if sequence.extend:
        judged = [guess.token for guess in sequence.in_flight]
        assert judged == list(sequence.extend.judged), "other guesses than the target judges"
    assert sequence.metrics.protocol_errors == 0, "a protocol error"
    assert not (world.clean and sequence.metrics.timeouts), "waited in vain, without any fault"
    guesses = sequence.chain_length - len(sequence.committed)
    longest = min(sequence.prompt_length + sequence.max_tokens, world.context["target"]) - 1
    assert guesses <= world.lookahead, "drafted too far ahead"
    assert not guesses or sequence.chain_length <= longest, "drafted what can never be used"


def check_draft(world: "World") -> None:
    """The draft's cache is its chain, and its chain is the coordinator's."""
    actor = world.draft
    if not actor.alive:
        return
    worker, sequences = world.coordinator.workers["draft"], world.coordinator.sequences
    quiet = world.quiet(actor)
    for request, chain in actor.draft._chains.items():
        _check_caches(actor, chain)
        if (sequence := sequences.get(request)) is None or not worker.up:
            continue
        known = min(chain.known, len(sequence.committed))
        assert chain.tokens[:known] == sequence.committed[:known], "off the committed prefix"
        if quiet and chain.synced:
            _check_in_step(world, actor.draft, chain, sequence)
    if quiet:
        for request, sequence in sequences.items():
            assert (sequence.draft in OPENED) == (request in actor.draft._chains), "who drafts?"


def _check_caches(actor: "DraftActor", chain: _Chain) -> None:
    """What the model was fed and what was indexed is the chain's beginning."""
    drafter = chain.drafter
    if drafter.computes:
        cache = actor.model.held[drafter._slot]
        assert cache == chain.tokens[: len(cache)], "the draft's cache is not its chain"
    if drafter._ngrams:
        indexed = drafter._ngrams._index._tokens.tolist()
        assert indexed == chain.tokens[: len(indexed)], "what is looked up in is not the chain"


def _check_in_step(world: "World", draft: Draft, chain: _Chain, sequence: SequenceState) -> None:
    """Nothing is on its way between draft and coordinator: they know the same."""
    others = world.coordinator.sequences.values()
    in_pass = any(other.extend for other in others)  # drafts are told once all of it is over
    if chain.serial != sequence.serial:
        told = world.loss_chance or (sequence.unsent and in_pass)
        if sequence.hushed and chain.serial == sequence.told:
            assert draft._rests(chain), "not told of commits, yet at work"
            world.seen["hushed"] += 1
            return
        assert told, "the draft misses a commit that is nowhere on its way"
        return
    world.seen["in step"] += 1
    assert chain.tokens == sequence.chain(), "the draft drafts on another chain"
    limits = (chain.limit, chain.rest_at)
    assert limits == sequence.limits, "the draft has other limits"
    if not (in_pass or sequence.hushed):  # decided anew at each event, so it must be told at once
        wish = world.coordinator._scheduler.limits(sequence)
        assert limits == wish, "the draft has not been told how far it may go on"
    stuck = draft._stuck(chain) is not None
    assert not (sequence.drafting and stuck) or draft._is_to_say_so(chain), "waited for, but stuck"
    if sequence.draft is DraftState.OPEN and not (sequence.drafting or sequence.prices):
        assert stuck, "drafting, but not waited for"


def check_guess(actor: "DraftActor", block: Block) -> None:
    """Each guess is what the draft's law says after the tokens before it."""
    chain = actor.draft._chains[block.request]
    params, before = chain.drafter.sampling, chain.tokens[: block.start]
    for source in block.sources:
        actor.world.seen[f"guess of {source}"] += 1
    if EOS in block.tokens:
        actor.world.seen["end guessed" if params.stop_token_ids else "end guessed and ignored"] += 1
    guesses = []
    for token, source in zip(block.tokens, block.sources, strict=True):
        ids = [*before, *(guess.token for guess in guesses)]
        if source == "model":
            guesses.append(Sampler(params).guess(actor.model.law(ids), len(ids), ids))
        else:
            law = GuessLaw((token,), (1.0,)) if params.rejects else None
            guesses.append(Guess(token, 1.0, law))
    assert block.tokens == tuple(g.token for g in guesses), "not what the draft's law says"
    assert block.laws == tuple(g.law for g in guesses if g.law), "not the law that was drawn from"


def check_laws(actor: "TargetActor", message: Extend | Proceed) -> None:
    """The rejection rule gets, with each guess, the law that it was drawn from."""
    sampling = actor.world.submitted[message.request].sampling
    extend = actor.target._settled(message)
    if extend is None:
        return
    assert extend.sampling == (None if extend.start else sampling), "not told once"
    judged, held = extend.judged, actor.target._held.get(message.request)
    assert len(extend.laws) == (len(judged) if sampling.rejects else 0)
    fed = (held.tokens if held else [])[: extend.start]
    known = fed + list(extend.tokens[: extend.verify_from - extend.start])
    for i, sent in enumerate(extend.laws):
        before = known + list(judged[:i])
        sampler, drafts = Sampler(sampling), actor.world.draft_laws.values()
        laws = [sampler.guess(draft(before), len(before), before).law for draft in drafts]
        laws.append(GuessLaw((judged[i],), (1.0,)))  # looked up
        assert sent in laws, "the law of another guess"


def check_looked_up(actor: "TargetActor", verdict: Verdict) -> None:
    """The target guesses only where it may, and no further than the answer can get."""
    world, block = actor.world, verdict.block
    world.seen["looked up by the target"] += len(block)
    world.seen["looked up by the target and accepted"] += verdict.accepted if block else 0
    assert not block or world.target_looks_up, "a target that has nowhere to look"
    assert len(block) <= world.lookahead, "more than were allowed"
    submit, held = world.submitted[verdict.request], actor.target._held[verdict.request]
    longest = min(len(submit.tokens) + submit.max_tokens, world.context["target"]) - 1
    chain = held.length - verdict.accepted + len(block)
    assert not block or chain <= longest, "guessed what can never be used"


def check_target(world: "World") -> None:
    """The target's cache is the committed prefix, whenever the target rests."""
    actor = world.target
    if not actor.busy and world.quiet(actor):
        for request, held in actor.target._held.items():
            if sequence := world.coordinator.sequences.get(request):
                expected = sequence.committed[: sequence.target_length]
                assert held.tokens[: held.length] == expected, "the target's cache is not committed"
                assert actor.model.held[held.slot] == held.tokens, "not what the cache holds"
                if held.drafter and held.drafter._ngrams:
                    indexed = held.drafter._ngrams._index._tokens.tolist()
                    assert indexed == expected[: len(indexed)], "looked up in another text"
                    assert not held.drafter._pending, "guesses whose fate is never learned"


def check_end(world: "World") -> None:
    """All requests ended, and all slots are free."""
    assert world.finished.keys() == world.plain.keys(), "deadlock: nothing to come, no finish"
    assert not world.coordinator.sequences, "a finished request is kept"
    for actor in (world.draft, world.target):
        if actor.alive and not actor.hangs:
            _check_slots(actor)
            assert not world.coordinator.workers[actor.role].held, "a slot is never used again"


def _check_slots(actor: "DraftActor | TargetActor") -> None:
    """All slots are free, and hold what the next request will be told that they hold."""
    slots = actor.slots
    if slots is None:
        return
    assert slots._taken == 0, f"the {actor.role} never gave a slot back"
    assert slots._left == actor.model.held, "not what was left in a slot"
