"""A pipeline in a Ray Data job: each row answered once, whatever becomes of a replica."""

import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
import ray
import ray.data

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.actors.data import SpecPipeUDF
from specpipe.errors import UserError, WorkerError
from tests.marked import MARK, running
from tests.prompts import prompts

PARAMS = SamplingParams(max_tokens=16, temperature=0.8, seed=7)
ROWS = 12


@pytest.fixture(scope="module")
def small_ray():
    """A Ray that somebody else started, on a machine of two cores."""
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv(MARK, ours())
        ray.init(address="local", num_cpus=2, **quiet)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def config(smollm2) -> Config:
    """One thread a model, so that replicas can share the cores."""
    return Config().override(
        models_dir=str(smollm2.folder.parent),
        target={"device": "cpu"},
        draft={"model": "smollm2-pruned", "device": "cpu"},
        pipeline={"policy": "take_all"},
    )


def questions() -> list[str]:
    """One for each row, all different."""
    return [f"{prompts(3)[i % 3]} ({i})" for i in range(ROWS)]


@pytest.fixture(scope="module")
def written(small_ray, config) -> list[str]:
    """What a pipeline of this program's own writes, row by row."""
    with Pipeline.launch(config) as pipeline:
        return [each.text for each in pipeline.generate(questions(), PARAMS)]


def column(*values) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_a_bad_row_has_an_error_and_the_others_their_answers(small_ray, config):
    """One prompt too long must not end a job of a million rows, nor shift the answers."""
    stage = SpecPipeUDF(config.override(draft={"model": "none"}), PARAMS, prompt_column="question")
    try:
        chat = np.array([{"role": "user", "content": "Name a river."}], dtype=object)
        ids = np.array(stage._pipeline.pair.encode("Name a river."))
        cells = column("Name a river.", "", "word " * 9000, chat, ids, None)
        done = stage({"question": cells, "id": np.arange(6)})
        with pytest.raises(UserError, match=r"no column 'question': .* one of id"):
            stage({"id": np.arange(2)})
        assert stage({"question": column()})["text"].shape == (0,)
    finally:
        stage.close()
    assert list(done) == ["question", "id", "text", "token_ids", "finish_reason", "error"]
    assert list(done["id"]) == list(range(6))
    texts, errors = list(done["text"]), list(done["error"])
    assert texts[0] == texts[3] == texts[4] != ""
    assert [bool(error) for error in errors] == [False, True, True, False, False, True]
    for at, fragment in {1: "empty", 2: "8192", 5: "None"}.items():
        assert fragment in errors[at]
        assert (texts[at], done["token_ids"][at], done["finish_reason"][at]) == ("", [], "error")
    assert len(done["token_ids"][0]) > 1


def test_what_cannot_be_asked_of_rows_is_refused_before_anything_starts(config):
    with pytest.raises(UserError, match="n is 3: a row has one answer"):
        SpecPipeUDF(config, SamplingParams(n=3, temperature=0.5))
    with pytest.raises(UserError, match="targit"):
        SpecPipeUDF({"targit": {"model": "smollm2"}})


def test_a_pipeline_that_cannot_go_on_ends_the_job(small_ray, config):
    """Otherwise all further rows would be empty, and the job a success."""
    stage = SpecPipeUDF(config.override(draft={"model": "none"}), PARAMS)
    try:
        assert len(pipelines()) == 2, "a hub and a target"
        stage._pipeline._hub.kill()
        with pytest.raises(WorkerError, match="cannot go on: the coordinator's process ended"):
            stage({"prompt": column("Hello")})
    finally:
        stage.close()


class Mortal(SpecPipeUDF):
    """A stage whose first process to see a certain row dies of it."""

    def __init__(self, folder: Path, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.folder = folder

    def __call__(self, batch):
        if 7 in batch["id"]:
            try:
                (self.folder / "died").touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os._exit(1)
        done = super().__call__(batch)
        (self.folder / f"{os.getpid()}").touch()
        return done


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data")  # it warns of its own settings
def test_rows_of_a_lost_replica_are_done_again_and_none_twice(small_ray, config, written, tmp_path):
    """Ray restarts the replica; its pipeline must go with the old process and come with the new."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"id": i, "prompt": text} for i, text in enumerate(questions())]
    dataset = ray.data.from_items(rows).map_batches(
        Mortal,
        fn_constructor_args=(tmp_path, config, PARAMS),
        batch_size=2,
        concurrency=2,
        num_cpus=0.5,
    )
    done = dataset.take_all()
    assert sorted(row["id"] for row in done) == list(range(ROWS))
    assert {row["id"]: row["text"] for row in done} == dict(enumerate(written))
    assert {row["error"] for row in done} == {""}
    assert (tmp_path / "died").exists()
    assert len(list(tmp_path.iterdir())) >= 3, "two replicas and the mark of a death"
    del dataset
    deadline = time.monotonic() + 30
    while pipelines() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert pipelines() == set(), "pipelines outlived the job"


def pipelines() -> set[str]:
    """What lives of pipelines: models, by Ray's names, and hubs."""
    actors = {each["name"] for each in ray.util.list_named_actors(all_namespaces=True)}
    hubs = {line for line in running(ours()) if "specpipe.hub" in line}
    return hubs | {name for name in actors if name.startswith("specpipe-")}


def ours() -> str:
    """What the processes that this one starts are marked with."""
    return str(os.getpid())
