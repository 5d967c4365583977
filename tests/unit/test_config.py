"""The configuration tree: defaults, files, overrides, and what is refused."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from specpipe.config import Config, DraftConfig, ModelConfig, PipelineConfig, RayConfig
from specpipe.errors import UserError
from specpipe.logs import LogConfig
from specpipe.sampling import SamplingParams

DEFAULT_TOML = Path(__file__).parents[2] / "configs" / "default.toml"
TABLES = {
    "target": ModelConfig,
    "draft": DraftConfig,
    "sampling": SamplingParams,
    "pipeline": PipelineConfig,
    "ray": RayConfig,
    "log": LogConfig,
}


def refusal(data: dict[str, Any]) -> str:
    """The one line with which a file of this content is refused."""
    with pytest.raises(UserError) as caught:
        Config.from_dict(data, "my.toml")
    message = str(caught.value)
    assert "my.toml" in message
    assert "\n" not in message
    return message


def test_default_toml_is_the_defaults() -> None:
    """A default changed in code only would make its documentation lie."""
    assert Config.from_toml(DEFAULT_TOML) == Config()


def test_default_toml_says_of_every_setting_what_it_does() -> None:
    """A setting that nobody documents is never found."""
    text = DEFAULT_TOML.read_text()
    assert text.startswith("# ")
    assert re.search(r"^# models_dir = ", text, re.MULTILINE)
    sections = dict(re.findall(r"^\[(\w+)\](.*?)(?=^\[|\Z)", text, re.MULTILINE | re.DOTALL))
    assert sections.keys() == TABLES.keys()
    for table, kind in TABLES.items():
        for field in dataclasses.fields(kind):
            line = rf"^(# )?{field.name} = [^#\n]*# \S"
            assert re.search(line, sections[table], re.MULTILINE), f"{table}.{field.name}"


def test_commented_examples_are_valid(tmp_path: Path) -> None:
    """An example that fails when it is commented in is worse than none."""
    path = tmp_path / "all.toml"
    path.write_text(re.sub(r"^# (\w+ = )", r"\1", DEFAULT_TOML.read_text(), flags=re.MULTILINE))
    config = Config.from_toml(path)
    assert config.models_dir
    assert config.sampling.seed is not None
    assert config.pipeline.context_length
    assert config.ray.address == "auto"


def test_a_file_keeps_the_defaults_that_it_does_not_mention(tmp_path: Path) -> None:
    path = tmp_path / "few.toml"
    path.write_text('[target]\ndevice = "cpu:1"\n[sampling]\ntemperature = 1\n')
    config = Config.from_toml(path)
    assert config.target == ModelConfig("smollm2", device="cpu:1")
    assert config.sampling == SamplingParams(temperature=1.0)
    assert config.draft == Config().draft


def test_whole_numbers_become_floats() -> None:
    """`wait_timeout_s = 2` is what people write; messages and type checkers want a float."""
    config = Config.from_dict({"pipeline": {"wait_timeout_s": 2}, "ray": {"num_cpus": 1}})
    assert isinstance(config.pipeline.wait_timeout_s, float)
    assert isinstance(config.ray.num_cpus, float)


def test_draft_none_means_no_draft_and_stays_so() -> None:
    """A flag for the draft's device must not switch on a draft that the file switched off."""
    config = Config.from_dict({"draft": {"model": "none", "dtype": "float32"}})
    assert config.draft is None
    assert config.override(draft={"model": None, "device": "cpu:0"}).draft is None
    assert config.override(draft={"model": "tiny"}).draft == DraftConfig("tiny")
    assert Config().override(draft={"model": "none"}).draft is None


def test_look_ups_need_no_model() -> None:
    """`draft none` means two things: nobody guesses, or nobody computes."""
    for given in ({"drafter": "ngram"}, {"drafter": "ngram", "model": "none"}):
        draft = Config().override(draft=given).draft
        assert draft is not None
        assert not draft.has_model
    by_file = Config.from_dict({"draft": {"drafter": "ngram"}})
    assert by_file.override(draft={"model": "none"}).draft is not None
    assert by_file.override(draft={"dtype": "float32"}).draft is not None
    off = Config().override(draft={"model": "none"})
    assert off.override(draft={"drafter": "ngram"}).draft is not None
    assert off.draft is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"drafter": "oracle"}, "drafter is 'oracle': choose one of hybrid, model, ngram"),
        ({"drafter": "hybrid", "model": "none"}, "'hybrid' needs a draft model: name one, or"),
        ({"remember": 5}, "remember is 5: give 0 for nothing, or 1024 to"),
        ({"remember": 2**40}, "remember is 1099511627776"),
        ({"remember": 5000, "drafter": "model"}, "choose hybrid or ngram"),
    ],
)
def test_drafters_that_cannot_be_are_refused(given: dict[str, Any], expected: str) -> None:
    """Found out in the worker, it costs a launch and a trace."""
    with pytest.raises(UserError, match=re.escape(expected)):
        Config().override(draft=given)


def test_override_changes_only_what_was_given() -> None:
    """Flags that were not given are None; they must not undo the file."""
    config = Config.from_dict({"sampling": {"seed": 7, "max_tokens": 9}, "models_dir": "a"})
    changed = config.override(
        target={"model": "other", "device": None},
        sampling={"seed": None, "temperature": 0.0, "max_tokens": 5},
    )
    assert changed.sampling == SamplingParams(max_tokens=5, seed=7)
    assert changed.target == ModelConfig("other")
    assert changed.models_dir == "a"
    assert config.override(models_dir="b").models_dir == "b"
    assert config.override() == config


def test_a_recording_needs_a_name() -> None:
    """An empty path would be the working directory, or nothing recorded after a long run."""
    with pytest.raises(UserError, match="record is ''"):
        Config().override(pipeline={"record": ""})


def test_override_is_validated_as_a_file_is() -> None:
    with pytest.raises(UserError, match="temperature is -1"):
        Config().override(sampling={"temperature": -1.0})
    with pytest.raises(UserError, match="did you mean temperature"):
        Config().override(sampling={"temprature": 1.0})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"pipeline": {"lookahed": 8}}, "setting pipeline.lookahed .*did you mean lookahead?"),
        ({"pipline": {}}, r"table \[pipline\] .*did you mean pipeline\?"),
        ({"Target": {}}, "did you mean target?"),
        ({"temperature": 1.0}, "did you mean sampling.temperature?"),
        ({"pipeline": {"max_tokens": 1}}, "did you mean sampling.max_tokens?"),
        ({"model_dir": "a"}, "did you mean models_dir?"),
        ({"qqq": {}}, "target, draft, sampling, pipeline, ray"),
        ({"target": {"qqq": 1}}, "model, device, dtype"),
        ({"target": {"a\nb": 1}}, r"target\.'a\\nb'"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_one_meant(
    data: dict[str, Any], expected: str
) -> None:
    """Silently ignored, it would look like a setting without effect."""
    assert re.search(expected, refusal(data))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"target": {"model": 3}}, "target.model is 3 .*must be a text"),
        ({"target": "smollm2"}, r"target is 'smollm2' .*table, \[target\]"),
        ({"sampling": {"max_tokens": 1.5}}, "max_tokens is 1.5 .*whole number"),
        ({"sampling": {"max_tokens": True}}, "max_tokens is True .*whole number"),
        ({"sampling": {"max_tokens": 2**64}}, "max_tokens .*64 bits"),
        ({"sampling": {"seed": 2**20_000}}, "seed .*64 bits"),
        ({"sampling": {"temperature": "hot"}}, "temperature is 'hot' .*a number"),
        ({"sampling": {"temperature": True}}, "temperature is True .*a number"),
        ({"sampling": {"temperature": 10**400}}, "temperature .*64 bits"),
        ({"sampling": {"ignore_eos": 1}}, "ignore_eos is 1 .*true or false"),
        ({"sampling": {"seed": [1, 2]}}, r"seed is \[1, 2\] .*whole number"),
        ({"models_dir": 1}, "models_dir is 1 .*a text"),
    ],
)
def test_a_wrong_type_names_setting_value_and_type(data: dict[str, Any], expected: str) -> None:
    """Unchecked, it would fail somewhere in a worker; `True` would even pass as the number 1."""
    assert re.search(expected, refusal(data))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"target": {"model": ""}}, "target .*model is ''"),
        ({"draft": {"device": "gpu"}}, "draft .*'gpu' is not a device"),
        ({"draft": {"dtype": "int3"}}, "dtype is 'int3'.*bfloat16"),
        ({"sampling": {"max_tokens": 0}}, "max_tokens is 0"),
        ({"sampling": {"temperature": float("nan")}}, "temperature is nan"),
        ({"sampling": {"seed": -1}}, "seed is -1"),
        ({"pipeline": {"policy": "magic"}}, "'magic'.*take_all"),
        ({"pipeline": {"lookahead": 0}}, "lookahead is 0"),
        ({"pipeline": {"prefill_chunk": -5}}, "prefill_chunk is -5"),
        ({"pipeline": {"max_num_seqs": 0}}, "max_num_seqs is 0"),
        ({"pipeline": {"context_length": 1}}, "context_length is 1"),
        ({"pipeline": {"wait_timeout_s": 0}}, "wait_timeout_s is 0"),
        ({"pipeline": {"wait_timeout_s": float("inf")}}, "wait_timeout_s is inf"),
        ({"ray": {"launch_timeout_s": -1}}, "launch_timeout_s is -1"),
        ({"ray": {"num_cpus": float("nan")}}, "num_cpus is nan"),
        ({"ray": {"num_cpus": -1}}, "num_cpus is -1"),
        ({"ray": {"address": ""}}, "address is ''"),
        ({"ray": {"address": "ray://head:10001"}}, "'ray://head:10001'.*host:port"),
        ({"ray": {"address": "RAY://head:10001"}}, "Ray Client"),
    ],
)
def test_a_value_out_of_range_names_itself_and_the_remedy(
    data: dict[str, Any], expected: str
) -> None:
    assert re.search(expected, refusal(data))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[target\n", "is not a TOML file"),
        (b"lookahead: 3\n", "is not a TOML file"),
        (b"[target]\nmodel = '\xff'\n", "is not a TOML file"),
        (b"x = " + b"9" * 5000, "is not a TOML file"),
        (b"x = " + b"[" * 5000, "is not a TOML file"),
        (b"[target]\nmodel = 'a'\nmodel = 'b'\n", "is not a TOML file"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes, expected: str) -> None:
    """The parser's own errors are of four kinds, deep recursion among them."""
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        Config.from_toml(path)
    assert expected in str(caught.value)
    assert "broken.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        with pytest.raises(UserError, match="cannot read the configuration file"):
            Config.from_toml(path)


def test_a_configuration_cannot_be_changed_behind_the_validation() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().pipeline.lookahead = -1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("table", "on_cpu", "dtype", "covered"),
    [
        ({}, True, "int4", 8192),
        ({}, False, "auto", 8192),
        ({"dtype": "float16", "head_tokens": 0}, True, "float16", 0),
        ({"backend": "transformers"}, True, "auto", 0),
        ({"backend": "transformers", "head_tokens": 512}, True, "auto", 512),
    ],
)
def test_a_draft_is_made_cheap_where_that_is_not_ruled_out(table, on_cpu, dtype, covered) -> None:
    """transformers has neither: a default that it can't have would refuse each such draft."""
    draft = DraftConfig("smollm2-pruned", **table)
    assert draft.kept_as(on_cpu=on_cpu) == dtype
    assert draft.covered_tokens == covered
    assert ModelConfig("smollm2").kept_as(on_cpu=True) == "auto", "a target is what its file says"
