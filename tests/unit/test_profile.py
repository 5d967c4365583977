"""Profiles: the shipped ones can be read, wrong ones name what is wrong."""

from pathlib import Path

import pytest

from specpipe.errors import UserError
from specpipe.profile import read_profile

SHIPPED = sorted((Path(__file__).parents[2] / "configs" / "profiles").glob("*.toml"))
GOOD = 'name = "a"\nsource = "b"\nstep_ms = 2.0\npasses_ms = { 1 = 10.0, 4 = 12.0 }\n'


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_profiles(path):
    profile = read_profile(path)
    assert profile.source
    assert profile.hardware.pass_seconds(1) > profile.hardware.step > 0


def test_a_profile_is_in_seconds(tmp_path):
    path = tmp_path / "a.toml"
    path.write_text(GOOD + "grain = 0.5\nlatency_ms = 1\nacceptance = 0.7\n")
    profile = read_profile(path)
    assert profile.hardware.passes == ((1, 0.01), (4, 0.012))
    assert (profile.hardware.step, profile.hardware.latency) == (0.002, 0.001)
    assert (profile.hardware.grain, profile.acceptance) == (0.5, 0.7)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        (("step_ms = 2.0", ""), ["step_ms", "None"]),
        (("step_ms = 2.0", "step_ms = 0"), ["step_ms", "above 0"]),
        (("step_ms", "steps_ms"), ["steps_ms", "step_ms"]),
        (("{ 1 = 10.0, 4 = 12.0 }", "3"), ["passes_ms", "3"]),
        (("4 = 12.0", "four = 12.0"), ["four"]),
        (("12.0", "true"), ["4", "True"]),
        (("step_ms", "grain = 2\nstep_ms"), ["grain", "2"]),
        (('"a"', '"a'), ["TOML"]),
    ],
)
def test_a_wrong_profile_is_refused(tmp_path, change, fragments):
    path = tmp_path / "bad.toml"
    path.write_text(GOOD.replace(*change))
    with pytest.raises(UserError) as error:
        read_profile(path)
    for fragment in fragments:
        assert fragment in str(error.value)


def test_a_profile_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"absent\.toml"):
        read_profile(tmp_path / "absent.toml")
