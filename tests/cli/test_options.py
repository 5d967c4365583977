"""Flags of the sampler: each reaches the configuration, and each wrong value is one line."""

import click
import pytest

from specpipe.cli.options import configure, pipeline_options, sampling_options

WRONG = {
    "top_k is -1": ["--top-k=-1"],
    "top_p is 0.0": ["--top-p", "0"],
    "min_p is 1.5": ["--min-p", "1.5"],
    "repetition_penalty is 0.0": ["--repetition-penalty", "0"],
    "presence_penalty is 3.0": ["--presence-penalty", "3"],
    "frequency_penalty is -3.0": ["--frequency-penalty=-3"],
    "a stop text is ''": ["--stop", ""],
    "n is 0": ["--n", "0"],
    "n is 2 at temperature 0": ["--n", "2"],
    "logprobs is 50": ["--logprobs", "50", "--json"],
    "--logprobs are shown in JSON only": ["--logprobs", "5"],
    "--logit-bias is '7'": ["--logit-bias", "7"],
    "--logit-bias is '7=x'": ["--logit-bias", "7=x"],
    "logit_bias names 'x'": ["--logit-bias", "x=1"],
    "logit_bias of token 7 is 900.0": ["--logit-bias", "7=900"],
    "logit_bias names the token id 999999": ["--logit-bias", "999999=1"],
    "stop_token_ids names the token id 999999": ["--stop-token-ids", "999999"],
    "acceptance is 'both'": ["--acceptance", "both"],
    "'lazy'": ["--policy", "lazy"],
}


@pytest.mark.parametrize("fragment", WRONG)
def test_wrong_value_is_named(fragment, refused, smollm2):
    models = ("--models-dir", smollm2.folder.parent)
    flags = WRONG[fragment]
    assert fragment in refused("run", "--prompt", "Hi", *models, *flags)


def test_verify_refuses_what_it_cannot_compare(refused, smollm2, tmp_path):
    """A law is kept by rejection, its very tokens are not; and without a draft there is no pair."""
    (tmp_path / "p").write_text('{"prompt": "Hi"}\n')
    command = ("verify", "--prompts", tmp_path / "p", "--models-dir", smollm2.folder.parent)
    for fragment, flags in {
        "without a draft": ["--draft", "none"],
        "acceptance 'rejection' at temperature 0.7": [
            *("--acceptance", "rejection", "--temperature", "0.7")
        ],
    }.items():
        assert fragment in refused(*command, *flags)
    (tmp_path / "p").write_text("Hi\n")
    assert "line 1 of" in refused(*command)


def test_every_sampling_flag_reaches_the_configuration():
    """A flag that is accepted and forgotten."""

    @click.command()
    @pipeline_options
    @sampling_options
    def command(**options):
        return configure(options)

    flags = (
        "--max-tokens 5 --temperature 0.5 --top-k 7 --top-p 0.9 --min-p 0.1 --seed 3 --ignore-eos "
        "--repetition-penalty 1.1 --presence-penalty 0.2 --frequency-penalty 0.3 --stop X --stop Y "
        "--stop-token-ids 4 --stop-token-ids 5 --logit-bias 6=-1.5 --logit-bias 7=2 "
        "--acceptance rejection --policy serial:3"
    )
    config = command.main(flags.split(), standalone_mode=False)
    sampling = config.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_k) == (5, 0.5, 7)
    assert (sampling.top_p, sampling.min_p, sampling.seed) == (0.9, 0.1, 3)
    assert (sampling.repetition_penalty, sampling.presence_penalty) == (1.1, 0.2)
    assert (sampling.frequency_penalty, sampling.ignore_eos) == (0.3, True)
    assert (sampling.stop, sampling.stop_token_ids) == (("X", "Y"), (4, 5))
    assert sampling.logit_bias == {6: -1.5, 7: 2.0}
    assert (config.pipeline.acceptance, config.pipeline.policy) == ("rejection", "serial:3")
