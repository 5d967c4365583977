"""The rejection rule: outputs follow the target's law, whatever was guessed, and however it is cut.

A small pipeline of the real parts (sampler, acceptance) writes four tokens many times; how often
each text comes out is held against the law of all texts, worked out from the target's tables. The
draft runs ahead of what is judged, as in the pipeline, so that bonus tokens meet guesses that were
made already. What each planted bug does to the law is small; the test must see it.
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from specpipe.acceptance import judge
from specpipe.drafting import drafter as drafter_module
from specpipe.drafting.drafter import Sources, _Pending
from specpipe.errors import ProtocolError
from specpipe.filters import adjusted, filtered
from specpipe.models.interface import Logits
from specpipe.noise import NoiseStream
from specpipe.sampler import Guess, Sampler
from specpipe.sampling import GuessLaw, Sampling
from tests.toys import ROWS, VOCABULARY, ToyModel, decode_plain, hashed, sampling

LENGTH = 4
PROMPT = (1, 2)
RUNS = 16_000
OPTIONS = {"temperature": 1.0, "acceptance": "rejection"}

Text = tuple[int, ...]


class Table:
    """Logits chosen from a table by all the ids before; no token is rare."""

    def __init__(self, seed: int) -> None:
        rows = np.random.default_rng(seed).normal(scale=0.8, size=(ROWS, VOCABULARY))
        self._seed, self._rows = seed, rows.astype(np.float32)

    def __call__(self, ids: Sequence[int]) -> Logits:
        return self._rows[hashed(ids, self._seed, ROWS)]


TARGET, DRAFT = Table(31), Table(32)


class Policy(NamedTuple):
    """When to judge, and how much; it may look at what Guess calls its confidence.

    Attributes:
        ready: whether the waiting guesses are to be judged now, or another one awaited.
        count: how many of them.
        ahead: how many guesses are made while the target works.
        copies: share of guesses that come from elsewhere, without chance: all their law's mass is
            on one token.
    """

    ready: Callable[[Sequence[Guess], random.Random], bool]
    count: Callable[[Sequence[Guess], random.Random], int]
    ahead: Callable[[random.Random], int] = lambda rng: 0
    copies: float = 0.0


def _by_doubt(waiting: Sequence[Guess], rng: random.Random) -> bool:
    """Stop, left to right, at the first position of which the draft is unsure."""
    return len(waiting) > 3 or any(guess.confidence < 0.4 for guess in waiting)


POLICIES = {
    "blocks of two": Policy(lambda w, _: len(w) >= 2, lambda w, _: 2),
    "take all, drafting on": Policy(
        lambda w, _: bool(w), lambda w, _: len(w), lambda rng: rng.randrange(3)
    ),
    "any part, at any time": Policy(
        lambda w, rng: len(w) > 4 or rng.random() < 0.4,
        lambda w, rng: rng.randint(0, len(w)),
        lambda rng: rng.randrange(4),
    ),
    "until in doubt": Policy(_by_doubt, lambda w, _: len(w)),
    "some guesses copied": Policy(
        lambda w, _: len(w) >= 2, lambda w, _: len(w), lambda rng: 1, copies=0.5
    ),
}


def verified(ids: list[int], block: Sequence[Guess], target: Sampler) -> list[int]:
    """The tokens that one pass of the target commits: what it accepts of a block, and one more."""
    chain = [*ids, *(guess.token for guess in block)]
    rows = np.stack([TARGET(chain[:end]) for end in range(len(ids), len(chain) + 1)])
    tokens, laws = chain[len(ids) :], [guess.law for guess in block if guess.law]
    accepted, token = judge(rows, tokens, len(ids), target, laws=laws, tokens=chain)
    return [*tokens[:accepted], token]


def write(policy: Policy, params: Sampling, rng: random.Random) -> Text:
    """One text of LENGTH tokens, by a draft that runs ahead and a target that judges."""
    target, draft = Sampler(params), Sampler(params)
    ids, waiting = list(PROMPT), list[Guess]()

    def guess() -> None:
        chain = [*ids, *(guess.token for guess in waiting)]
        if rng.random() < policy.copies:
            token = (chain[-1] + chain[-2]) % VOCABULARY
            waiting.append(Guess(token, 1.0, GuessLaw((token,), (1.0,))))
        else:
            waiting.append(draft.guess(DRAFT(chain), len(chain), chain))

    while len(ids) < len(PROMPT) + LENGTH:
        while not policy.ready(waiting, rng):
            guess()
        block = waiting[: policy.count(waiting, rng)]
        for _ in range(policy.ahead(rng)):
            guess()
        committed = verified(ids, block, target)
        ids += committed
        same = [g.token for g in waiting[: len(committed)]] == committed
        waiting[:] = waiting[len(committed) :] if same else []
    return tuple(ids[len(PROMPT) : len(PROMPT) + LENGTH])


def count(policy: Policy, runs: int = RUNS, **options: object) -> Counter[Text]:
    """How often each text is written, over samples of one seed."""
    params = sampling(**(OPTIONS | options))
    rng = random.Random(5)
    return Counter(write(policy, replace(params, sample=i), rng) for i in range(runs))


Exact = dict[Text, NDArray[np.float64]]
"""For each text shorter than LENGTH, the chances of the token that follows it."""


def law(bias: Sequence[float] = (0.0,) * VOCABULARY, **options: object) -> Exact:
    """What the target alone writes, by its tables; `bias` is added to every chance."""
    params = sampling(**(OPTIONS | options))
    exact = {}
    for length in range(LENGTH):
        for text in itertools.product(range(VOCABULARY), repeat=length):
            ids = [*PROMPT, *text]
            row = filtered(adjusted(TARGET(ids), params, ids, len(ids)), params)
            chances = np.zeros(VOCABULARY)
            chances[slice(None) if row.ids is None else row.ids] = row.chances()
            exact[text] = chances + bias
    return exact


def distance(counts: Counter[Text], exact: Exact) -> float:
    """By how many standard deviations what was written lies off the law; the largest of several.

    Chi-square of whole texts, and of their beginnings (those too rare to count alone are counted
    together); and, for each token, how often it was written more than its chances said, over all
    places, which is what sees a small bias of everything.
    """
    chances, worst = {(): 1.0}, -math.inf
    excess, variance = np.zeros(VOCABULARY), np.zeros(VOCABULARY)
    seen = Counter[Text]()
    for text, times in counts.items():
        seen.update({text[:length]: times for length in range(LENGTH + 1)})
    for _ in range(LENGTH):
        begun, chances = chances, {}
        for text, chance in begun.items():
            here = exact[text]
            chances |= {(*text, token): chance * here[token] for token in range(VOCABULARY)}
            excess += [seen[*text, token] for token in range(VOCABULARY)] - seen[text] * here
            variance += seen[text] * here * (1 - here)
        if any(seen[text] for text, chance in chances.items() if chance == 0):
            return math.inf  # what the target never writes
        worst = max(worst, _chi_square(seen, chances, counts.total()))
    return max(worst, float(np.abs(excess / np.sqrt(variance)).max()))


def _chi_square(seen: Counter[Text], chances: Exact, runs: int) -> float:
    cells = [(seen[t], runs * c) for t, c in chances.items() if runs * c >= 10]
    rest = runs - sum(s for s, _ in cells), runs - sum(e for _, e in cells)
    cells += [rest] if rest[1] >= 10 else []
    chi = sum((s - e) ** 2 / e for s, e in cells)
    freedom = len(cells) - 1
    return (chi - freedom) / (2 * freedom) ** 0.5


FAR = 5.0
"""Beyond this, chance is no explanation; fixed seeds make it a fact rather than a risk."""


def _some_slow(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters, of which all but a few wait for the long tests."""
    slow = pytest.mark.slow
    return [pytest.param(name, marks=[] if name in quick else slow) for name in names]


@pytest.fixture(scope="module")
def exact() -> Exact:
    return law()


@pytest.mark.parametrize("name", _some_slow(POLICIES, "take all, drafting on"))
def test_texts_follow_the_targets_law(name: str, exact: Exact) -> None:
    """The rule's whole promise: recovered, bonus and accepted tokens together."""
    assert distance(count(POLICIES[name]), exact) < FAR


@pytest.mark.parametrize(
    "options",
    [{"top_k": 3}, pytest.param({"top_p": 0.8, "repetition_penalty": 1.5}, marks=pytest.mark.slow)],
    ids=str,
)
def test_filters_and_penalties_are_part_of_the_law(options: dict[str, float]) -> None:
    """A filter that one side applies and the other doesn't; penalties that see too few tokens."""
    counts = count(POLICIES["take all, drafting on"], RUNS // 2, **options)
    assert distance(counts, law(**options)) < FAR


@pytest.mark.slow
def test_one_percent_of_bias_would_be_seen() -> None:
    """A test of the law that is too weak to fail."""
    counts = count(POLICIES["blocks of two"])
    for token in range(VOCABULARY):
        bias = [-0.0025] * VOCABULARY
        bias[token] = 0.01
        assert distance(counts, law(bias)) > FAR, token


# -- planted bugs


def _bias(patch: pytest.MonkeyPatch) -> None:
    stands = Sampler.stands
    patch.setattr(Sampler, "stands", lambda self, p, q, at: stands(self, p * 1.1, q, at))


def _row_shifted(patch: pytest.MonkeyPatch) -> None:
    law = Sampler.law
    patch.setattr(
        Sampler, "law", lambda self, row, at, ids: law(self, TARGET(ids[: at - 1]), at, ids)
    )


def _misreported(patch: pytest.MonkeyPatch) -> None:
    """The draft says that it was surer than it was."""
    guess = Sampler.guess

    def sharper(self: Sampler, *args: object) -> Guess:
        made = guess(self, *args)
        assert made.law is not None
        squared = np.array(made.law.chances) ** 1.3
        return made._replace(law=GuessLaw(made.law.ids, tuple(squared / squared.sum())))

    patch.setattr(Sampler, "guess", sharper)


def _bonus_reuses(patch: pytest.MonkeyPatch) -> None:
    """The number that accepted the last guess draws the token after it."""

    def choose(self: Sampler, row: np.ndarray, at: int, ids: Sequence[int]) -> int:
        return self._draw(filtered(row, self.sampling), at - 1, NoiseStream.ACCEPT)

    patch.setattr(Sampler, "choose", choose)


def _recovery_reuses(patch: pytest.MonkeyPatch) -> None:
    """The number that refused a guess draws the token in its place."""
    draw = Sampler._draw
    shared = {NoiseStream.RECOVER: NoiseStream.ACCEPT}
    patch.setattr(Sampler, "_draw", lambda self, law, at, s: draw(self, law, at, shared.get(s, s)))


def _recovery_from_all(patch: pytest.MonkeyPatch) -> None:
    """A refused guess is replaced by a plain draw."""
    patch.setattr(
        Sampler, "recover", lambda self, law, q, at: self._draw(law, at, NoiseStream.RECOVER)
    )


PLANTED = {
    "a bias": (_bias, RUNS // 2),
    "a row shifted by one": (_row_shifted, RUNS // 16),
    "a draft that misreports its law": (_misreported, RUNS // 8),
    "a bonus token that reuses the accept stream": (_bonus_reuses, RUNS // 2),
    "a recovered token that reuses the accept stream": (_recovery_reuses, RUNS // 4),
    "a recovered token that forgets the guess": (_recovery_from_all, RUNS // 16),
}
"""Each with how many texts are enough to see it: fewer than those that show that there is none."""


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bug_is_caught(bug: str, exact: Exact, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that is blind to one of the known ways to be slightly wrong."""
    plant, runs = PLANTED[bug]
    plant(monkeypatch)
    assert distance(count(POLICIES["blocks of two"], runs), exact) > FAR


def test_policy_that_looks_at_the_tokens_own_chance_is_caught(exact: Exact) -> None:
    """To send the guesses that look good is not lossless, which is why Guess hides q(x)."""

    def good(waiting: Sequence[Guess], _: random.Random) -> int:
        own = [g.law.chances[g.law.ids.index(g.token)] for g in waiting if g.law]
        return next((i for i, chance in enumerate(own) if chance < 0.3), len(own))

    greedy_for_good = Policy(lambda w, _: len(w) >= 3, good)
    assert distance(count(greedy_for_good, RUNS // 2), exact) > FAR


def test_policy_that_learns_of_an_end_token_is_caught(exact: Exact) -> None:
    """A draft that rests at an end token tells what it guessed; so by rejection it must not."""
    end = 0

    def rests(waiting: Sequence[Guess]) -> bool:
        return bool(waiting) and waiting[-1].token == end

    telling = Policy(
        lambda w, _: len(w) >= 3 or rests(w), lambda w, _: len(w) - 1 if rests(w) else len(w)
    )
    assert distance(count(telling, RUNS // 4), exact) > FAR


# -- with guesses that are looked up, by the real drafter


def write_drafted(policy: Policy, params: Sampling, rng: random.Random, sources: Sources) -> Text:
    """As `write`, but look-ups come at once, as they do beside a model's pass."""
    target, drafter = Sampler(params), sources.open(params)
    ids, waiting = list(PROMPT), list[Guess]()

    def chain() -> list[int]:
        return [*ids, *(guess.token for guess in waiting)]

    def look_up() -> bool:
        found = drafter.look_up(chain(), 8, may_compute=True)
        waiting.extend(proposal.guess for proposal in found)
        return bool(found)

    def guess() -> None:
        if not look_up():
            made = drafter.compute(chain(), 99)
            assert made is not None
            waiting.append(made.guess)
        look_up()

    while len(ids) < len(PROMPT) + LENGTH:
        while not policy.ready(waiting, rng):
            guess()
        block = waiting[: policy.count(waiting, rng)]
        for _ in range(policy.ahead(rng)):
            guess()
        committed = verified(ids, block, target)
        guessed = [guess.token for guess in waiting[: len(committed)]]
        same = 0
        while same < len(guessed) and guessed[same] == committed[same]:
            same += 1
        drafter.settle(len(ids), committed[: same + 1])
        if same < len(committed):
            drafter.truncate(len(ids) + same)
        waiting[:] = waiting[len(committed) :] if same == len(guessed) else []
        ids += committed
    drafter.close()
    return tuple(ids[len(PROMPT) : len(PROMPT) + LENGTH])


def count_drafted(policy: Policy, runs: int = RUNS // 2) -> Counter[Text]:
    """How often each text is written; counts what was looked up, too."""
    params, rng = sampling(**OPTIONS), random.Random(6)
    sources = Sources(ToyModel(DRAFT, context_length=64), lookup=True)
    return Counter(
        write_drafted(policy, replace(params, sample=i), rng, sources) for i in range(runs)
    )


COMPANY = Policy(lambda w, _: bool(w), lambda w, _: len(w) if len(w) > 1 else 0)
"""Sends a guess only if others are there by then: what a clock might do."""


@pytest.fixture
def _eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look-ups are taken whatever the model might say: more of them."""
    monkeypatch.setattr(drafter_module, "_WORTH_A_PASS", 1.0)


@pytest.mark.usefixtures("_eager")
@pytest.mark.parametrize(
    "name",
    _some_slow(["blocks of two", "take all, drafting on", "in company"], "take all, drafting on"),
)
def test_texts_follow_the_law_where_guesses_are_looked_up(name: str, exact: Exact) -> None:
    """Point masses beside drawn tokens, in one chain, judged in any company."""
    assert distance(count_drafted(POLICIES.get(name, COMPANY)), exact) < FAR


@pytest.mark.usefixtures("_eager")
def test_look_ups_behind_a_drawn_token_are_caught(
    exact: Exact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That they come at once, or not, tells a policy what was drawn."""
    init = _Pending.__init__

    def undrawn(self: _Pending, chance: float, drawn: bool, *rest: Any) -> None:
        init(self, chance, False, *rest)

    monkeypatch.setattr(_Pending, "__init__", undrawn)
    assert distance(count_drafted(COMPANY, RUNS // 4), exact) > FAR


# -- what travels


def test_guess_is_drawn_from_the_very_law_that_is_sent() -> None:
    """With more tokens than are sent, a law that is cut after the draw would be another one."""
    random_row = np.random.default_rng(0).normal(scale=0.6, size=150).astype(np.float32)
    sampler = Sampler(sampling(1.0, seed=4, acceptance="rejection"))
    guesses = [sampler.guess(random_row, position) for position in range(40_000)]
    sent = guesses[0].law
    assert sent is not None
    assert len(sent.ids) == 64
    assert min(random_row[list(sent.ids)]) >= np.sort(random_row)[-64]
    assert all(guess.law == sent for guess in guesses)
    seen = Counter(guess.token for guess in guesses)
    expected = {i: 40_000 * chance for i, chance in zip(sent.ids, sent.chances, strict=True)}
    assert set(seen) <= set(expected)
    chi = sum((seen[i] - e) ** 2 / e for i, e in expected.items())
    assert chi < 103.4  # 63 degrees of freedom, .001


def test_confidence_does_not_tell_the_token() -> None:
    """A policy that is shown q(x) can leave out what looks bad."""
    row = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    sampler = Sampler(sampling(1.0, acceptance="rejection"))
    guesses = [sampler.guess(row, position) for position in range(100)]
    assert {guess.token for guess in guesses} == {0, 1, 2}
    assert {round(guess.confidence, 6) for guess in guesses} == {0.5}


def test_greedy_is_the_same_by_either_rule() -> None:
    """Without noise there is one right token."""
    params = sampling(0.0, acceptance="rejection")
    plain, _ = decode_plain(TARGET, PROMPT, params, LENGTH)
    for policy in POLICIES.values():
        assert write(policy, params, random.Random(1)) == tuple(plain)


@pytest.mark.parametrize(
    "laws", [(), (GuessLaw((1, 2), (0.5, 0.5)),)], ids=["no law", "a law without the guess"]
)
def test_guess_without_its_law_is_no_guess(laws: tuple[GuessLaw, ...]) -> None:
    """Judged as if it had been certain, it would be accepted too often."""
    rows = np.zeros((2, VOCABULARY), dtype=np.float32)
    with pytest.raises(ProtocolError):
        judge(rows, [3], 2, Sampler(sampling(**OPTIONS)), laws=laws)


def test_token_beyond_the_targets_vocabulary_is_refused_and_replaced() -> None:
    """A draft whose vocabulary has a longer tail than the target's."""
    sampler = Sampler(sampling(**OPTIONS))
    rows = np.zeros((2, 5), dtype=np.float32)
    accepted, token = judge(rows, [7], 2, sampler, laws=[GuessLaw((3, 7), (0.5, 0.5))])
    assert accepted == 0
    assert token in {0, 1, 2, 4}, "3 has more chance in the draft's law than in the target's"
