"""What a user may ask of a completion, and what of it the workers have to know.

Values are checked here, each with one line that names it. How logits become tokens stands in
filters.py, noise.py and sampler.py.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from specpipe.errors import UserError

MAX_SEED = 2**63 - 1
MAX_SAMPLES = 1024
MAX_LOGPROBS = 20
MAX_STOPS = 64
MAX_STOP_LENGTH = 1024

Acceptance = Literal["coupled", "rejection"]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What a user may ask of a completion.

    Biases and penalties change the logits, in the order in which they stand here; then, at a
    temperature above 0, the filters do, in the order of transformers: temperature, top_k, top_p,
    min_p (see filters.py).

    Attributes:
        max_tokens: most tokens to write, at least 1.
        logit_bias: token id -> what is added to its logit, -100 to 100.
        repetition_penalty: above 1, tokens of the prompt and the answer become less likely.
        frequency_penalty: taken off a logit for each time that the token stands in the answer.
        presence_penalty: taken off a logit once if the token stands in the answer.
        temperature: 0 is greedy; otherwise logits are divided by it.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens that together have this chance.
        min_p: keep tokens at least this times as likely as the likeliest.
        seed: 0 to 2**63 - 1; None lets the pipeline choose one and report it.
        n: how many answers to write, each with noise of its own.
        stop: texts that end the answer when they appear in it; they are not part of it.
        stop_token_ids: tokens that end the answer, besides the model's own end tokens.
        ignore_eos: go on after the model's own end tokens, as benchmarks do.
        logprobs: how many of the likeliest tokens to report at each position, with the written one,
            by their log-probabilities under the model itself: before biases, penalties, temperature
            and filters. None reports nothing.

    Raises:
        UserError: for a value out of range, or two that exclude each other.
    """

    max_tokens: int = 256
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    n: int = 1
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))
        self._check_law()
        self._check_stops()
        _require("max_tokens", self.max_tokens, 1, None, "ask for at least 1 token")
        _require("n", self.n, 1, MAX_SAMPLES, f"ask for 1 to {MAX_SAMPLES} answers")
        if self.n > 1 and self.temperature == 0:
            raise UserError(
                f"n is {self.n} at temperature 0: all answers would be the same; set a temperature"
            )
        if self.seed is not None:
            _require("seed", self.seed, 0, MAX_SEED, f"it must lie between 0 and {MAX_SEED}")
        if self.logprobs is not None:
            hint = f"ask for 0 to {MAX_LOGPROBS} alternatives"
            _require("logprobs", self.logprobs, 0, MAX_LOGPROBS, hint)

    def _check_law(self) -> None:
        hint = "it must be 0 (greedy) or a positive number"
        _require("temperature", self.temperature, 0, None, hint)
        _require("top_k", self.top_k, 0, None, "keep at least 1 token, or 0 for all")
        hint = "it must be above 0 and at most 1"
        _require("top_p", self.top_p, math.ulp(0.0), 1, hint)
        _require("min_p", self.min_p, 0, 1, "it must lie between 0 and 1")
        hint = "it must be a positive number, at most 100; 1 is none"
        _require("repetition_penalty", self.repetition_penalty, 0.01, 100, hint)
        for name in ("frequency_penalty", "presence_penalty"):
            _require(name, getattr(self, name), -2, 2, "it must lie between -2 and 2")
        for token, bias in self.logit_bias.items():
            _require("a token id in logit_bias", token, 0, 2**31, "ids are counted from 0")
            _require(f"logit_bias of token {token}", bias, -100, 100, "give -100 to 100")

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOPS or len(self.stop_token_ids) > MAX_STOPS:
            raise UserError(f"there are more than {MAX_STOPS} stops of one kind: leave some out")
        for text in self.stop:
            if not text:
                raise UserError("a stop text is '': it would end every answer; leave it out")
            if len(text) > MAX_STOP_LENGTH:
                raise UserError(
                    f"a stop text has {len(text)} characters: at most {MAX_STOP_LENGTH} are allowed"
                )
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError(
                    f"the stop text {text!r:.60} is not valid Unicode: give it as UTF-8"
                )
        for token in self.stop_token_ids:
            _require("a stop token id", token, 0, 2**31, "ids are counted from 0")


def _require(name: str, value: float, least: float, most: float | None, remedy: str) -> None:
    inside = math.isfinite(value) and least <= value and (most is None or value <= most)
    if not inside:
        raise UserError(f"{name} is {value}: {remedy}")


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a worker has to know to draw one answer's tokens; part of the messages.

    Attributes:
        temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty, presence_penalty,
            seed: as in SamplingParams.
        sample: which of the request's answers this is, from 0.
        stop_token_ids: end the sequence when drawn; a draft need not guess past one.
        acceptance: the rule by which guesses are judged.
        bias_ids, bias_values: logit_bias, ids rising.
        prompt_length: where the answer begins, in tokens.
        logprobs: as in SamplingParams.
    """

    temperature: float
    seed: int
    sample: int = 0
    stop_token_ids: tuple[int, ...] = ()
    acceptance: Acceptance = "coupled"
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    bias_ids: tuple[int, ...] = ()
    bias_values: tuple[float, ...] = ()
    prompt_length: int = 0
    logprobs: int | None = None

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        *,
        seed: int,
        sample: int,
        stop_token_ids: Sequence[int],
        prompt_length: int,
        acceptance: Acceptance,
    ) -> "Sampling":
        """The part of a user's parameters that workers need, with what the pipeline adds."""
        biases = sorted(params.logit_bias.items())
        return cls(
            temperature=float(params.temperature),
            seed=seed,
            sample=sample,
            stop_token_ids=tuple(stop_token_ids),
            acceptance=acceptance,
            top_k=params.top_k,
            top_p=float(params.top_p),
            min_p=float(params.min_p),
            repetition_penalty=float(params.repetition_penalty),
            frequency_penalty=float(params.frequency_penalty),
            presence_penalty=float(params.presence_penalty),
            bias_ids=tuple(token for token, _ in biases),
            bias_values=tuple(float(bias) for _, bias in biases),
            prompt_length=prompt_length,
            logprobs=params.logprobs,
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, without noise."""
        return self.temperature == 0

    @property
    def rejects(self) -> bool:
        """Whether guesses are judged by the rejection rule; greedily both rules are one."""
        return self.acceptance == "rejection" and not self.greedy

    @property
    def penalises(self) -> bool:
        """Whether a token's logit depends on where it stood before."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1, 0, 0)

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the temperature."""
        return self.penalises or bool(self.bias_ids)


@dataclass(frozen=True, slots=True)
class GuessLaw:
    """The sparse law that a guess was drawn from, exactly: ids with chances that sum to 1."""

    ids: tuple[int, ...]
    chances: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """A written token's log-probability, and the likeliest tokens with theirs, likeliest first."""

    logprob: float
    top_ids: tuple[int, ...]
    top_logprobs: tuple[float, ...]
