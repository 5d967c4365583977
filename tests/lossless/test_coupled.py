"""The coupled rule: the same tokens as plain sampling, and these drawn from the right law."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from specpipe.acceptance import judge
from specpipe.errors import SpecpipeError
from specpipe.models.interface import Logits
from specpipe.noise import noise_words, uniforms
from specpipe.sampler import Sampler
from specpipe.sampling import Sampling
from tests.toys import DraftLaw, TargetLaw, decode_plain, sampling

# -- the same tokens, whatever was drafted


def partitions(total: int) -> Iterator[tuple[int, ...]]:
    """All ways to write `total` as a sum of positive parts, in order."""
    if total == 0:
        yield ()
    for first in range(1, total + 1):
        for rest in partitions(total - first):
            yield (first, *rest)


def speculate(
    law: TargetLaw, draft: DraftLaw, prompt: list[int], params: Sampling, parts: tuple[int, ...]
) -> tuple[list[int], int]:
    """Tokens and accepted guesses, for blocks of one guess less than the parts, over and over."""
    ids, target, guesser, accepted = list(prompt), Sampler(params), Sampler(params), 0
    for part in parts * sum(parts):  # a refused block decides fewer tokens than its part
        if len(ids) - len(prompt) >= sum(parts):
            break
        block: list[int] = []
        while len(block) < part - 1:
            chain = ids + block
            block.append(guesser.choose(draft(chain), len(chain)))
        chain = ids + block
        rows = np.stack([law(chain[:end]) for end in range(len(ids), len(chain) + 1)])
        right, token = judge(rows, block, len(ids), target)
        ids += [*block[:right], token]
        accepted += right
    return ids[len(prompt) :], accepted


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("agree", [0, 60, 100])
def test_any_blocks_give_what_plain_sampling_gives(temperature: float, agree: int) -> None:
    """A row judged with its neighbour's law or noise, or a wrong token after the block."""
    length, accepted = 7, 0
    for seed in range(6):
        law, params = TargetLaw(seed), sampling(temperature, seed=seed, sample=3)
        draft = DraftLaw(law, agree)
        prompt = [seed % 5, 2]
        for parts in partitions(length):
            plain, _ = decode_plain(law, prompt, params, length)
            tokens, right = speculate(law, draft, prompt, params, parts)
            assert tokens[:length] == plain, (seed, parts)
            accepted += right
            if agree == 100:
                assert right == sum(parts) - len(parts)
    assert accepted > 0


@pytest.mark.parametrize(
    "seeds",
    [range(1000), pytest.param(range(10_000), marks=pytest.mark.slow)],
    ids=["1000", "10000"],
)
def test_every_partition_for_many_seeds(seeds: range) -> None:
    """What goes wrong for one seed in thousands: a tie, an edge of the noise, a rare rollback."""
    law = TargetLaw(3)
    draft = DraftLaw(law, 60)
    for seed in seeds:
        params, length = sampling(1.0, seed=seed), 4
        plain, _ = decode_plain(law, [1, 2], params, length)
        for parts in partitions(length):
            if len(parts) < length:  # else nothing is guessed
                assert speculate(law, draft, [1, 2], params, parts)[0][:length] == plain, seed


def test_draft_of_another_law_still_agrees_often() -> None:
    """Noise that is not shared: then guesses would match by chance alone."""
    rng = np.random.default_rng(0)
    matches, bound, rounds = 0, 0.0, 2000
    for position in range(rounds):
        p_logits = rng.normal(size=8).astype(np.float32)
        q_logits = (p_logits + rng.normal(size=8) * 0.5).astype(np.float32)
        params = sampling(1.0, seed=1)
        matches += Sampler(params).choose(p_logits, position) == Sampler(params).choose(
            q_logits, position
        )
        distance = np.abs(softmax(p_logits) - softmax(q_logits)).sum() / 2
        bound += (1 - distance) / (1 + distance)
    assert matches / rounds > bound / rounds - 0.03


# -- the right law


def softmax(logits: Logits, temperature: float = 1.0) -> NDArray[np.float64]:
    weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    law: NDArray[np.float64] = weights / weights.sum()
    return law


LOGITS = np.log(np.array([0.2, 0.18, 0.15, 0.13, 0.12, 0.1, 0.08, 0.04])).astype(np.float32)
DRAWS = 80_000
LIMIT = 24.32  # of chi-square with 7 degrees of freedom: exceeded once in 1000 by chance


def chi_square(counts: NDArray[np.int64], law: NDArray[np.float64]) -> float:
    expected = counts.sum() * law
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.fixture(scope="module")
def drawn() -> dict[str, NDArray[np.int64]]:
    """Draws at many positions of one request, and at one position of many requests."""
    one = Sampler(sampling(1.0, seed=11))
    along = [one.choose(LOGITS, position) for position in range(DRAWS)]
    across = [Sampler(sampling(1.0, seed=seed)).choose(LOGITS, 5) for seed in range(DRAWS)]
    samples = [Sampler(sampling(1.0, sample=i)).choose(LOGITS, 5) for i in range(DRAWS)]
    ways = {"positions": along, "seeds": across, "samples": samples}
    return {way: np.bincount(tokens, minlength=8) for way, tokens in ways.items()}


@pytest.mark.parametrize("way", ["positions", "seeds", "samples"])
def test_tokens_follow_the_law(way: str, drawn: dict[str, NDArray[np.int64]]) -> None:
    """Noise that is not exponential, or correlated, skews what is said; slightly, and for ever."""
    assert chi_square(drawn[way], softmax(LOGITS)) < LIMIT


@pytest.mark.parametrize("way", ["positions", "seeds", "samples"])
def test_one_percent_of_bias_would_be_seen(way: str, drawn: dict[str, NDArray[np.int64]]) -> None:
    """A test of the law that is too weak to fail."""
    for gains, loses in ((0, 1), (4, 0), (2, 5)):
        biased = softmax(LOGITS)
        biased[gains] += 0.01
        biased[loses] -= 0.01
        assert chi_square(drawn[way], biased) > LIMIT


def test_neighbouring_positions_are_independent() -> None:
    """Counters that overlap would make a token depend on the one before it."""
    sampler = Sampler(sampling(1.0, seed=12))
    tokens = [sampler.choose(LOGITS, position) for position in range(40_000)]
    pairs = np.zeros((8, 8), dtype=np.int64)
    np.add.at(pairs, (tokens[:-1], tokens[1:]), 1)
    law = softmax(LOGITS)
    assert chi_square(pairs.ravel(), np.outer(law, law).ravel()) < 103.4  # 63 degrees, .001


# -- the noise

MASK = 2**64 - 1


def philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """Philox4x64-10 from its definition (Salmon et al. 2011)."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        left, right = a * 0xD2E7470EE14C6C93, c * 0xCA5A826395121157
        a, b, c, d = (right >> 64) ^ b ^ k, right & MASK, (left >> 64) ^ d ^ m, left & MASK
        k, m = (k + 0x9E3779B97F4A7C15) & MASK, (m + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


PI = (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89)
KNOWN = {  # Random123's kat_vectors: (counter, key): words
    ((0, 0, 0, 0), (0, 0)): """
        16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b""",
    ((MASK,) * 4, (MASK,) * 2): """
        87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0""",
    (PI, (0x452821E638D01377, 0xBE5466CF34E90C6C)): """
        a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6""",
}


@pytest.mark.parametrize(("counter", "key"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int]) -> None:
    """A reference that is itself wrong, or a numpy whose Philox is not Philox."""
    expected = [int(word, 16) for word in KNOWN[counter, key].split()]
    assert philox(counter, key) == expected
    before = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % 2**256
    generator = np.random.Philox(key=key[0] | key[1] << 64, counter=before)
    assert generator.random_raw(4).tolist() == expected


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1])
@pytest.mark.parametrize(("sample", "position"), [(0, 0), (1, 1), (2**32, 4096), (2**63 - 1, 7)])
def test_word_of_a_token_is_addressed_by_seed_sample_position_and_id(
    seed: int, sample: int, position: int
) -> None:
    """An update of numpy that draws otherwise would change everybody's seeded outputs."""
    words = noise_words(seed, sample, position, 11)
    expected = [philox((i // 4 + 1, position, 0, 0), (seed, sample))[i % 4] for i in range(11)]
    assert words.tolist() == expected
    assert noise_words(seed, sample, position, 4).tolist() == expected[:4], "a shorter vocabulary"


def test_uniforms_lie_strictly_between_0_and_1() -> None:
    """log(0): the largest word, rounded up to 1, would be an infinite exponential."""
    words = np.array([0, 1, 2**11, 2**12, 2**63 - 1, 2**63, MASK - 1, MASK], dtype=np.uint64)
    u = uniforms(words)
    assert 0 < u.min() < 1e-15
    assert 1 - 1e-15 < u.max() < 1
    assert (np.diff(u) >= 0).all()


# -- the race


def direct(logits: Logits, params: Sampling, position: int) -> int:
    """argmax z / T - log E by the formula, in long doubles: no scaling, no shortcut."""
    u = uniforms(noise_words(params.seed, params.sample, position, len(logits)))
    u = u.astype(np.longdouble)
    keys = logits.astype(np.longdouble) / params.temperature - np.log(-np.log1p(-u))
    return int(keys.argmax())


def kinds_of_rows(rng: np.random.Generator, size: int) -> Iterator[Logits]:
    row = rng.normal(scale=3, size=size).astype(np.float32)
    yield row
    yield np.round(row)  # many ties
    yield row * np.float32(1e-3)
    yield row + np.float32(1e4)
    sparse = row.copy()
    sparse[rng.random(size) < 0.99] = -np.inf
    yield sparse
    one = np.full(size, -np.inf, dtype=np.float32)
    one[size // 2] = -7
    yield one
    yield np.zeros(size, dtype=np.float32)
    many = np.full(size, -10.5, dtype=np.float32)  # each far behind the best, all together ahead
    many[size // 3] = 0
    yield many


@pytest.mark.parametrize("temperature", [1e-6, 0.01, 0.7, 1.0, 2.0, 100.0])
def test_race_picks_what_the_formula_picks(temperature: float) -> None:
    """The shortcut past most logarithms must never leave the winner out."""
    rng = np.random.default_rng(int(temperature * 100))
    for position in range(6):
        for row in kinds_of_rows(rng, 50_000):
            params = sampling(temperature, seed=position, sample=1)
            assert Sampler(params).choose(row, position) == direct(row, params, position)


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-40, 1e40, 1e300])
def test_absurd_temperatures_still_give_a_token_and_its_chance(temperature: float) -> None:
    """A confidence that is not a number is no message: the block would be dropped on arrival."""
    row = np.array([1.0, -np.inf, 3.0, 3.0, -2e4], dtype=np.float32)
    sampler = Sampler(sampling(temperature, seed=3))
    for position in range(20):
        token = sampler.choose(row, position)
        assert token in ({2, 3} if temperature < 1 else {0, 2, 3, 4})
        assert 0.2 < sampler.guess(row, position).confidence <= 1


def test_confidence_is_the_chance_of_the_token() -> None:
    """The dispatch rule reckons with it."""
    for temperature in (0.5, 1.0, 2.0):
        sampler = Sampler(sampling(temperature))
        law = softmax(LOGITS, temperature)
        guesses = [sampler.guess(LOGITS, position) for position in range(2000)]
        assert {guess.token for guess in guesses} == set(range(8))
        for guess in guesses:
            assert guess.confidence == pytest.approx(law[guess.token], rel=1e-6)
    greedy = Sampler(sampling(0.0)).guess(LOGITS, 0)
    assert (greedy.token, greedy.confidence) == (0, pytest.approx(0.2, rel=1e-5))


def test_rows_of_any_length_share_their_noise() -> None:
    """Target and draft whose vocabularies are padded differently would draw apart."""
    short = np.random.default_rng(0).normal(size=100).astype(np.float32)
    padded = np.concatenate([short, np.full(28, -np.inf, dtype=np.float32)])
    for first, second in ((short, padded), (padded, short)):
        sampler = Sampler(sampling(1.0, seed=4))
        for position in range(50):
            assert sampler.choose(first, position) == sampler.choose(second, position)


def test_revisited_positions_draw_the_same() -> None:
    """Noise that is used up: after a rollback the same position would get another token."""
    rng = random.Random(0)
    rows = np.random.default_rng(1).normal(size=(40, 30)).astype(np.float32)
    sampler = Sampler(sampling(1.0, seed=9))
    first = [sampler.choose(row, position) for position, row in enumerate(rows)]
    for _ in range(200):
        position = rng.randrange(40)
        assert sampler.choose(rows[position], position) == first[position]


def test_greedy_ties_go_to_the_lowest_id() -> None:
    """Two models of the same mind that break a tie differently."""
    row = np.array([0, 2, 1, 2, 2], dtype=np.float32)
    assert Sampler(sampling(0.0)).choose(row, 3) == 1
    assert Sampler(sampling(0.0)).choose(np.zeros(50_000, dtype=np.float32), 0) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_raise(temperature: float, bad: float) -> None:
    """A model whose dtype overflows would say the token that happens to come first."""
    row = np.array([0, 1, bad, 2], dtype=np.float32)
    with pytest.raises(SpecpipeError, match="position 6"):
        Sampler(sampling(temperature)).choose(row, 6)
    with pytest.raises(SpecpipeError):
        Sampler(sampling(temperature)).choose(np.full(4, -np.inf, dtype=np.float32), 6)
