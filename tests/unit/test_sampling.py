"""What may be asked of a completion: every wrong value is one line that names it."""

import numpy as np
import pytest

from specpipe.errors import UserError
from specpipe.filters import filtered
from specpipe.sampling import Sampling, SamplingParams

WRONG = {
    "max_tokens": [0, -1],
    "temperature": [-0.1, float("nan"), float("inf")],
    "top_k": [-1],
    "top_p": [0.0, -0.5, 1.01, float("nan")],
    "min_p": [-0.01, 1.5],
    "repetition_penalty": [0.0, -1.0, 1e9, float("inf")],
    "frequency_penalty": [-2.5, 2.1, float("nan")],
    "presence_penalty": [-2.5, 2.1],
    "seed": [-1, 2**63],
    "n": [0, -3, 5000],
    "logprobs": [-1, 21],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_value_out_of_range_is_named(name: str, value: float) -> None:
    """A typo that is clipped in silence gives an answer to another question."""
    with pytest.raises(UserError, match=f"^{name} is ") as caught:
        SamplingParams(**{name: value})
    assert str(value) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("params", "fragment"),
    [
        ({"stop": [""]}, "a stop text is ''"),
        ({"stop": ["x" * 2000]}, "2000 characters"),
        ({"stop": ["a\ud800"]}, "not valid Unicode"),
        ({"stop": ["x"] * 65}, "more than 64 stops"),
        ({"stop_token_ids": [-1]}, "stop token id is -1"),
        ({"logit_bias": {-5: 1.0}}, "token id in logit_bias is -5"),
        ({"logit_bias": {7: 101.0}}, "logit_bias of token 7 is 101"),
        ({"logit_bias": {7: float("nan")}}, "logit_bias of token 7 is nan"),
        ({"n": 2}, "n is 2 at temperature 0"),
    ],
)
def test_what_makes_no_sense_is_refused(params: dict, fragment: str) -> None:
    """An empty stop text would end every answer at once, a bias of nan choose no token."""
    with pytest.raises(UserError, match=fragment):
        SamplingParams(**params)


def test_defaults_ask_for_nothing() -> None:
    """A default filter or penalty would change what the model says."""
    sampling = Sampling.of(
        SamplingParams(temperature=1.0),
        seed=1,
        sample=0,
        stop_token_ids=(),
        prompt_length=3,
        acceptance="coupled",
    )
    assert not any((sampling.adjusts, sampling.rejects, sampling.greedy))
    law = filtered(np.array([0.0, -50.0, 2.0], dtype=np.float32), sampling)
    assert law.ids is None


def test_single_stop_text_needs_no_list_and_params_are_hashable_values() -> None:
    """A text taken for a list would stop at each of its letters."""
    assert SamplingParams(stop="END").stop == ("END",)
    biased = SamplingParams(logit_bias={1: 2.0})
    assert hash(biased) == hash(SamplingParams(logit_bias={1: 2.0}))
    assert biased != SamplingParams(logit_bias={1: 3.0})


def test_rejection_needs_a_temperature() -> None:
    """Greedy has one right token, and no law to send."""
    assert not Sampling(0.0, 1, acceptance="rejection").rejects
    assert Sampling(0.5, 1, acceptance="rejection").rejects
