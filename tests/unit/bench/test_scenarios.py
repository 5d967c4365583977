"""Who is held against whom: the same devices, drafters and weights; who is left out is told."""

import pytest

from specpipe.bench.scenarios import LENGTHS, SCENARIOS, contenders, layouts, missing
from specpipe.config import Config
from specpipe.devices import place
from specpipe.errors import UserError


def placed(config, cores=4, gpus=0):
    draft = config.draft.device if config.draft else None
    computes = config.draft is not None and config.draft.has_model
    return place(
        draft, config.target.device, gpus=gpus, cores=range(cores), draft_computes=computes
    )


def devices(config, **machine):
    return {
        name: (each.draft and each.draft.device, each.target.device)
        for name, each in layouts(config, placed(config, **machine)).items()
    }


def test_rivals_have_the_pipelines_devices() -> None:
    """A target with more cores alone than in the pipeline, or fewer, is another rival."""
    assert devices(Config()) == {
        "pair": ("cpu:0", "cpu:1-3"),
        "target": (None, "cpu:1-3"),
        "draft": (None, "cpu:0"),
        "target on all": (None, "cpu:0-3"),
        "pair on all": ("cpu:0-3", "cpu:0-3"),
    }


def test_all_guess_with_the_same_drafter_and_weights() -> None:
    """S without look-ups, or a draft alone in float32, would be slower than need be."""
    config = Config().override(draft={"drafter": "hybrid"}, pipeline={"max_num_seqs": 3})
    found = layouts(config, placed(config))
    assert found["pair"].draft.drafter == found["pair on all"].draft.drafter == "hybrid"
    assert found["draft"].target.dtype == "int4"
    assert found["draft"].target.model == config.draft.model
    assert found["pair on all"].pipeline.policy.startswith("serial")
    # In a second slot a prompt would still be there from the last contender's turn.
    assert {each.pipeline.max_num_seqs for each in found.values()} == {1}


def test_each_length_is_a_contender_in_both_layouts() -> None:
    found = contenders(SCENARIOS, "take_all")
    assert [each.name for each in found[:4]] == ["A", "A_all", "B", "C"]
    assert {each.length for each in found if each.scenario == "S_all"} == set(LENGTHS)
    assert {each.way for each in found if each.scenario == "C"} == {"take_all"}
    assert {each.layout for each in found if each.scenario in {"C", "S"}} == {"pair"}
    assert len({each.name for each in found}) == len(found)


def test_what_cannot_be_had_is_said_with_its_reason() -> None:
    """Two GPUs can't hold one model together, and look-ups can't write alone."""
    config = Config()
    assert missing(config, placed(config)) == {}
    two_gpus = placed(config, gpus=2)
    assert set(missing(config, two_gpus)) == {"A_all", "S_all"}
    assert set(layouts(config, two_gpus)) == {"pair", "target", "draft"}
    ngram = config.override(draft={"drafter": "ngram"})
    assert set(missing(ngram, placed(ngram))) == {"B"}
    assert missing(config, placed(config, gpus=1)) == {}


def test_what_would_make_the_figures_worthless_is_refused() -> None:
    """Past answers are the very answers here; and there must be something to measure."""
    config = Config().override(draft={"remember": 5000})
    with pytest.raises(UserError, match="leave --remember out"):
        layouts(config, placed(config))
    config = Config().override(draft={"model": "none"})
    with pytest.raises(UserError, match="without a draft"):
        layouts(config, placed(config))
    config = Config().override(draft={"node": "elsewhere"})
    with pytest.raises(UserError, match="leave --target-node and --draft-node out"):
        layouts(config, placed(config))
