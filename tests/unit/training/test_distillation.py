"""From a target to its draft: what is learned, what is kept, what is told."""

import json

import numpy as np
import pytest
import torch

from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.models.loader import load_model
from specpipe.models.source import open_model
from specpipe.pair import ModelPair
from specpipe.policy_comparison import LEAST_TOKENS
from specpipe.prompts import Question
from specpipe.training import distillation, gathering, worth
from specpipe.training.distillation import Distillation, Recipe, worthwhile_layers
from specpipe.training.distilling import (
    Lessons,
    acceptance_loss,
    cross_entropy,
    has_bfloat16_matrices,
)
from specpipe.training.optimising import Schedule
from specpipe.training.shards import LAW_TOKENS, Conversation
from specpipe.training.student import coverage, head_ids, make_student, usual_layers
from tests.unit.training.chat_model import make_chat_model, make_draft

QUESTIONS = [Question("Why?", "short"), Question("Say it again: over and over", "copy")]
HOURS = 1 / 3600


@pytest.fixture
def target(tmp_path):
    return make_chat_model(tmp_path / "target")


@pytest.fixture
def small(monkeypatch):
    """Stages of seconds."""
    monkeypatch.setitem(gathering._CONVERSATIONS, "cpu", 16)
    monkeypatch.setattr(worth, "_TOKENS", LEAST_TOKENS)
    monkeypatch.setattr(gathering, "LONGEST", 96)
    monkeypatch.setattr(distillation, "_LOOK_EVERY", 10)


@pytest.fixture
def by_steps(monkeypatch):
    """Sixty steps in place of HOURS, however long they take: that depends on the machine."""

    def schedule(_, seconds, rate, **how):
        share = distillation._WRITING + distillation._LEARNING
        steps = round(60 * seconds / (HOURS * 3600 * share))
        return Schedule(steps, None, rate, **how)

    monkeypatch.setattr(distillation, "shard_seconds", lambda _: 0.0)
    monkeypatch.setattr(distillation, "Schedule", schedule)


def distil(target, folder, told=lambda *line: None, **changes):
    recipe = Recipe(**{"hours": HOURS, "head_tokens": 200} | changes)
    return Distillation(target, folder, recipe, QUESTIONS, told=told)


def conversation(tokens, written, laws) -> Conversation:
    ids = np.zeros((len(laws), LAW_TOKENS), np.int32)
    logprobs = np.full((len(laws), LAW_TOKENS), -np.inf, np.float16)
    for row, law in enumerate(laws):
        ids[row, : len(law)] = list(law)
        logprobs[row, : len(law)] = np.log(list(law.values()))
    return Conversation(np.array(tokens, np.int32), np.array(written), ids, logprobs, 1)


def test_the_loss_is_the_cross_entropy_of_the_laws() -> None:
    """Checked by hand: what the head doesn't cover counts for nothing, and rows count alike."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    places, chances = torch.tensor([[2, 0], [1, 0]]), torch.tensor([[0.6, 0.3], [1.0, 0.0]])
    logq = logits.log_softmax(-1)
    first = -(0.6 * logq[0, 2] + 0.3 * logq[0, 0])
    expected = (first - logq[1, 1]) / 2
    torch.testing.assert_close(cross_entropy(logits, places, chances), expected)


def test_the_chance_of_acceptance_is_learned_for() -> None:
    """By hand: sum min(p, q), what the head doesn't cover being refused, and its share."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    places, chances = torch.tensor([[2, 0], [1, 0]]), torch.tensor([[0.6, 0.3], [1.0, 0.0]])
    q = logits.softmax(-1)
    accepted = (min(0.6, q[0, 2]) + min(0.3, q[0, 0]) + q[1, 1]) / 2
    share = torch.exp(-3 * accepted)
    expected = share * cross_entropy(logits, places, chances) + (1 - share) * (1 - accepted)
    torch.testing.assert_close(acceptance_loss(logits, places, chances), expected)
    # A draft that knows one of two likely tokens better gains by giving up the other.
    laws = torch.tensor([[0.5, 0.5]])
    sure = torch.tensor([[0.0, -4.0]], requires_grad=True)
    acceptance_loss(sure, torch.tensor([[0, 1]]), laws).backward()
    steep = sure.grad[0, 1].item()
    sure.grad = None
    cross_entropy(sure, torch.tensor([[0, 1]]), laws).backward()
    assert abs(steep) < abs(sure.grad[0, 1].item()), "the unlikely one pulls less"


def test_a_draft_learns_what_follows_and_not_what_stands_there(target) -> None:
    """With laws one place off, the loss falls as well, and the draft is never right."""
    source = open_model(target.weights)
    network = make_student(source, (0, 1, 2, 3), tuple(range(264)), 128)
    tokens = [5, 9, 17, 30, 41]
    with torch.no_grad():
        hidden = network(torch.tensor([tokens]))
        logq = network.logits(hidden)[0].log_softmax(-1)
    # The target alone, all layers of it: its law at each place is what the network says before.
    laws = [{token: 1.0} for token in tokens[1:]]
    lessons = Lessons([conversation(tokens, [False] + [True] * 4, laws)], range(264), 264)
    loss, count = lessons.loss(network, 0)
    expected = -sum(logq[at, token] for at, token in enumerate(tokens[1:])) / 4
    close = {"rtol": 5e-3, "atol": 0.0} if has_bfloat16_matrices() else {}
    torch.testing.assert_close(loss, expected, **close)
    assert count == 5


def test_a_student_of_all_layers_is_its_target(target) -> None:
    """Queries arranged for the wrong rotary pairs, or a layer in another's place, would differ."""
    source = open_model(target.weights)
    ids = tuple(range(3, 264, 2))
    network = make_student(source, (0, 1, 2, 3), ids, 128)
    tokens = [5, 9, 17, 30, 41, 9, 9]
    with torch.no_grad():
        ours = network.logits(network(torch.tensor([tokens])))[0].numpy()
    model = load_model(target.weights, dtype="float32")
    theirs = model.forward(model.open(), tokens, len(tokens))
    np.testing.assert_allclose(ours, theirs[:, ids], atol=1e-4)
    assert not network.token_embd.weight.requires_grad, "shared, so it must stay as it is"


def test_batches_are_the_same_whenever_one_begins(target) -> None:
    """A run that goes on would see some conversations twice, and others never."""
    data = [
        conversation([1] * n, [False] + [True] * (n - 1), [{2: 1.0}] * (n - 1))
        for n in range(400, 1000, 20)
    ]
    network = make_student(open_model(target.weights), (0,), tuple(range(10)), 1024)
    seen: list[int] = []

    def counted(number: int) -> int:
        return Lessons(data, range(10), 264, seed=1).loss(network, number)[1]

    with torch.no_grad():
        one = Lessons(data, range(10), 264, seed=1)
        seen = [one.loss(network, number)[1] for number in range(2 * one.epoch)]
        assert seen == [counted(number) for number in range(2 * one.epoch)]
    whole = sum(len(each.tokens) for each in data)
    assert sum(seen[: one.epoch]) == sum(seen[one.epoch :]) == whole
    assert seen[: one.epoch] != seen[one.epoch :], "another order each time"


def test_a_batch_has_the_loss_of_its_texts(target) -> None:
    """Texts lie one behind the other: a law at another's place teaches what nobody says."""
    network = make_student(open_model(target.weights), (0, 3), tuple(range(200)), 128)
    chance = np.random.default_rng(3)
    data = []
    for length in (5, 3, 9, 4):
        tokens = chance.integers(0, 264, length).tolist()
        written = [*(chance.random(length) < 0.7)]
        written[1 + length % 2] = True
        laws = [{int(chance.integers(264)): 0.75, 263: 0.25} for _ in range(sum(written))]
        data.append(conversation(tokens, written, laws))
    with torch.no_grad():
        whole, count = Lessons(data, range(200), 264).loss(network, 0)
        alone = [Lessons([each], range(200), 264).loss(network, 0)[0].item() for each in data]
    shares = [each.written[1:].sum() for each in data]
    assert count == 21
    assert len({round(loss, 3) for loss in alone}) == len(data)
    close = {"rtol": 5e-3} if has_bfloat16_matrices() else {"rtol": 1e-5}
    np.testing.assert_allclose(whole.item(), np.average(alone, weights=shares), **close)


def test_a_head_covers_what_is_written_most() -> None:
    """And always what ends a text, or a draft would guess on past every end."""
    data = [conversation([0, 7, 7, 5, 5, 5, 3], [False] + [True] * 6, [{1: 1.0}] * 6)]
    assert head_ids(data, 3, 100, [90]) == (5, 7, 90)
    assert head_ids(data, 5, 100, [90]) == (0, 3, 5, 7, 90), "unseen ones by rising ids"
    assert coverage(data, (5, 7)) == pytest.approx(5 / 6)
    assert head_ids(data, 1000, 20, [2]) == tuple(range(20))


@pytest.mark.parametrize(
    ("count", "expected"), [(1, (0,)), (3, (0, 1, 9)), (4, (0, 1, 8, 9)), (12, tuple(range(10)))]
)
def test_the_first_and_the_last_layers_are_the_usual_ones(count, expected) -> None:
    """Those between matter least: without the last ones nothing fits the head."""
    assert usual_layers(count, 10) == expected


def test_the_usual_size_is_a_sixth_of_the_target(smollm2) -> None:
    """A size that nobody chose must be small beside its target, and more than nothing."""
    config = open_model(smollm2.weights).config
    assert worthwhile_layers(config, 8192) == 7
    assert worthwhile_layers(config, 49152) == 2, "a large head leaves no room for layers"


def test_a_draft_is_made_run_and_reported(target, small, by_steps, tmp_path, monkeypatch) -> None:
    """The whole way: what is installed must be what was trained, and be found by its target."""
    stages, late = [], []
    plain = Lessons.loss

    def watched(self, network, number, *, by_acceptance=False):
        late.append(by_acceptance)
        return plain(self, network, number, by_acceptance=by_acceptance)

    monkeypatch.setattr(Lessons, "loss", watched)
    folder = tmp_path / "draft"
    findings = distil(target, folder, lambda *line: stages.append(line[0])).run()
    assert list(dict.fromkeys(stages)) == ["writing", "learning", "judging"]
    held_out = [loss for _, loss in findings.curve.held_out]
    assert held_out[-1] < held_out[0] - 0.1, "it learns"
    assert late == [step >= 38 for step in range(60)], "for acceptance as the rate falls"
    assert not (tmp_path / ".distill-draft").exists(), "nothing is left of the work"
    names = {path.name for path in (tmp_path / "draft").iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "source.json"),
        *("report.md", "evaluation.json", "curves.png"),
    }
    evaluation = json.loads((tmp_path / "draft" / "evaluation.json").read_text())
    assert evaluation["judgements"]["0.0"]["by_category"].keys() == {"short", "copy"}
    for judged in findings.judgements.values():
        assert judged.tokens == len(judged.guesses["model"]) > 20
        rights = [guess.right for guess in judged.guesses["model"]]
        assert judged.acceptance["model"] == pytest.approx(np.mean(rights))
        assert all(length >= 1 for length in judged.lengths["hybrid"].values())
    assert findings.verdict in (tmp_path / "draft" / "report.md").read_text()
    config = Config().override(
        models_dir=str(tmp_path), target={"model": "target"}, draft={"model": "draft"}
    )
    pair = ModelPair.find(config)
    assert pair.draft is not None
    draft = load_model(pair.draft.weights, dtype="float32")
    logits = draft.forward(draft.open(), [5, 9], 1)
    assert np.isfinite(logits).sum() >= 200


@pytest.mark.gpu
def test_a_gpu_writes_and_learns(target, small, by_steps, tmp_path, monkeypatch) -> None:
    """Tensors left on the other device, or a draft that is written from the wrong one."""
    monkeypatch.setitem(gathering._CONVERSATIONS, "cuda", 16)
    monkeypatch.setattr(distillation, "_LOOK_EVERY_ON_GPU", 10)
    findings = distil(target, tmp_path / "draft", device="cuda:0").run()
    assert findings.curve.held_out[-1][1] < findings.curve.held_out[0][1] - 0.1
    assert load_model(tmp_path / "draft", dtype="float32").vocab_size


def test_an_interrupted_distillation_goes_on(
    target, small, by_steps, tmp_path, monkeypatch
) -> None:
    """Begun again, hours are lost; with another recipe it would be neither one nor the other."""
    # Seconds of simulation, that the test above has.
    monkeypatch.setattr(distillation, "expect", lambda *_: worth.Expected(1.0, 1.0, 1))

    def stop(stage, share, line):
        if stage == "learning" and share > 0.4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distil(target, tmp_path / "draft", stop).run()
    work = tmp_path / ".distill-draft"
    shards = {path.name: path.read_bytes() for path in (work / "data").iterdir()}
    step = torch.load(work / "checkpoint.pt", weights_only=True)["step"]
    assert step > 0
    with pytest.raises(UserError, match=r"learning_rate is 0.1, and .* 0.002: ask for the same"):
        distil(target, tmp_path / "draft", learning_rate=0.1)
    lines = []
    # More time is for learning: more text would change what the head's weights stand for.
    going_on = distil(target, tmp_path / "draft", lambda *line: lines.append(line), hours=2 * HOURS)
    findings = going_on.run()
    assert not [line for line in lines if line[0] == "writing"]
    first = next(line for line in lines if line[0] == "learning")
    assert first[2].startswith(f"step {step + 1}")
    assert len(shards) * 16 == findings.conversations


def test_what_cannot_be_done_is_said_before_any_work(target, small, tmp_path) -> None:
    """Not after hours."""
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there exists already"):
        distil(target, tmp_path / "there")
    with pytest.raises(UserError, match=r"prompt 1 to judge by has .* room for 384"):
        Distillation(
            target, tmp_path / "draft", Recipe(HOURS), [Question("a" * 500)],
            told=lambda *line: None,
        )  # fmt: skip
    draft = make_draft(tmp_path / "draft", target)
    with pytest.raises(UserError, match="is a draft itself"):
        distil(draft, tmp_path / "drafts-draft")
