"""The loop: its schedule, what a step adds up, and checkpoints that can be trusted."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from specpipe.errors import UserError
from specpipe.training import optimising
from specpipe.training.optimising import Schedule, Training, read_checkpoint
from tests.unit.models.test_pt_checkpoint import Program

SCHEDULE = Schedule(6, None, 0.1, warmup=2)
DATA = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.2), nn.Linear(4, 1))


def start(path: Path, network: nn.Module | None = None, **options) -> Training:
    network = network or model()
    return Training(network, options.pop("schedule", SCHEDULE), path / "c.pt", **options)


def run(training: Training, size: int = 4, told=lambda share, line: None, **options) -> None:
    def loss(number: int) -> tuple[Tensor, int]:
        rows = DATA[number * size : (number + 1) * size]
        return (training.network(rows).squeeze() - rows.sum(1)).square().mean(), size

    training.run(loss, lambda: 1.0, told, **options)


def weights(training: Training) -> Tensor:
    return torch.cat([each.detach().flatten() for each in training.network.parameters()])


# -- schedule


def test_the_rate_rises_then_falls_as_a_cosine() -> None:
    """Too fast at the beginning, and the first steps ruin it; not slow at the end, and it hops."""
    schedule = Schedule(100, None, 1.0, warmup=10, lowest=0.1)
    rates = [schedule.rate(step, schedule.share(step, 0)) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(1, rel=0.03)
    assert rates.index(max(rates)) == 9
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[50] == pytest.approx(0.55)
    assert rates[100] == pytest.approx(0.1)


def test_the_linear_one_keeps_its_height_before_it_falls() -> None:
    schedule = Schedule(100, None, 1.0, warmup=0, shape="linear", decay=0.5)
    rates = [schedule.rate(step, schedule.share(step, 0)) for step in (0, 49, 75, 100)]
    assert rates == pytest.approx([1, 1, 0.5, 0])


def test_time_and_steps_both_end_it() -> None:
    """A run by the hour that goes on for ever where only steps were counted."""
    schedule = Schedule(100, 10.0, 1.0)
    assert schedule.share(50, 1.0) == 0.5
    assert schedule.share(1, 9.0) == 0.9
    assert schedule.share(200, 99.0) == 1
    assert Schedule(None, 0.0, 1.0).share(0, 0) == 1


# -- steps


def test_accumulated_batches_are_one_larger_batch(tmp_path) -> None:
    """Gradients that are summed, not averaged: another learning rate than was asked for."""
    once, parts = (start(tmp_path / name, nn.Linear(8, 1)) for name in ("a", "b"))
    parts.network.load_state_dict(once.network.state_dict())
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    run(once, size=8)
    run(parts, size=2, accumulate=4)
    assert torch.allclose(weights(once), weights(parts), atol=1e-6)
    assert once.curve.tokens == parts.curve.tokens


def test_only_matrices_decay(tmp_path) -> None:
    """Norms that are drawn to zero."""
    network = nn.Linear(8, 1)
    nn.init.ones_(network.bias)
    training = start(tmp_path, network, weight_decay=1.0)
    before = network.weight.norm().item()
    training.run(lambda number: (0 * network(DATA).sum(), 1), lambda: 1.0, lambda *_: None)
    assert network.weight.norm().item() < before * 0.9
    assert network.bias.item() == 1


def test_a_loss_that_is_no_number_ends_it_and_leaves_the_checkpoint(tmp_path) -> None:
    """NaNs in the only checkpoint: hours lost."""
    training = start(tmp_path, every=2)

    def loss(number: int) -> tuple[Tensor, int]:
        value = training.network(DATA).mean().square()
        return (value / 0 if number == 3 else value), 1

    with pytest.raises(UserError, match=r"the loss is .* after 3 steps: lower the learning rate"):
        training.run(loss, lambda: 1.0, lambda *_: None)
    assert read_checkpoint(tmp_path / "c.pt")["step"] == 2
    assert torch.isfinite(weights(start(tmp_path))).all()


# -- checkpoints


def interrupt(at: int):
    def told(share: float, line: str) -> None:
        if line.startswith(f"step {at}"):
            raise KeyboardInterrupt

    return told


@pytest.mark.parametrize("at", [2, 3, 5])
def test_it_goes_on_where_it_stopped(tmp_path, at) -> None:
    """Moments, dropout's noise or the schedule begun anew: another model than without Ctrl-C."""
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole = start(tmp_path / "whole", every=2)
    run(whole)
    parts = start(tmp_path / "parts", every=2)
    with pytest.raises(KeyboardInterrupt):
        run(parts, told=interrupt(at))
    parts = start(tmp_path / "parts", every=2)
    assert parts.step == at - at % 2
    run(parts)
    assert torch.equal(weights(whole), weights(parts))
    assert whole.curve.held_out == parts.curve.held_out
    assert whole.curve.tokens == parts.curve.tokens


def test_there_is_a_checkpoint_each_minute(tmp_path, monkeypatch) -> None:
    """Looks at what is held out can be an hour apart."""
    monkeypatch.setattr(optimising, "_SAVE_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        run(start(tmp_path, every=1000), told=interrupt(3))
    assert read_checkpoint(tmp_path / "c.pt")["step"] == 3


def test_the_curve_is_that_of_an_uninterrupted_run(tmp_path, monkeypatch) -> None:
    """Losses since the last entry, forgotten: a curve whose points move with each Ctrl-C."""
    monkeypatch.setattr(optimising, "_AVERAGED", 4)
    for folder in ("whole", "parts"):
        (tmp_path / folder).mkdir()
    whole = start(tmp_path / "whole", every=2)
    run(whole)
    with pytest.raises(KeyboardInterrupt):
        run(start(tmp_path / "parts", every=2), told=interrupt(3))
    parts = start(tmp_path / "parts", every=2)
    run(parts)
    assert parts.curve.train == whole.curve.train
    assert [step for step, _ in whole.curve.train] == [4]


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch) -> None:
    """Half a checkpoint over the only whole one."""
    training = start(tmp_path)
    training.save()
    before = (tmp_path / "c.pt").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("specpipe.training.shards.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write .*c\.pt \(No space left on device\)"):
        run(training)
    assert (tmp_path / "c.pt").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


BROKEN = {
    "no checkpoint": lambda path: path.write_bytes(b"not at all"),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": cut,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a list": lambda path: torch.save([1], path),
    "nothing in it": lambda path: torch.save({}, path),
    "text for numbers": lambda path: torch.save(
        read_checkpoint(path) | {"step": "soon", "random": 3}, path
    ),
}


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_broken_checkpoint_gets_a_line(tmp_path, spoil) -> None:
    """A traceback, or a run that begins anew over what could be mended."""
    start(tmp_path).save()
    spoil(tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"c\.pt is .*remove it to begin anew"):
        start(tmp_path)


def test_a_program_in_a_checkpoint_is_not_run(tmp_path) -> None:
    """Checkpoints are handed around, and a pickle can do anything."""
    proof = tmp_path / "it ran"
    torch.save({"step": 1, "curve": Program(proof)}, tmp_path / "c.pt")
    with pytest.raises(UserError, match="is no checkpoint"):
        start(tmp_path)
    assert not proof.exists()


def test_a_checkpoint_of_something_else_is_refused(tmp_path) -> None:
    """Weights of one run under the seed and the schedule of another, and nobody knows."""
    start(tmp_path, recipe="a").save()
    with pytest.raises(UserError, match=r"c\.pt is of another recipe: ask for that one again"):
        start(tmp_path, recipe="b")
    with pytest.raises(UserError, match=r"c\.pt is from another model"):
        start(tmp_path, nn.Linear(8, 2), recipe="a")
    start(tmp_path, recipe="a")


def test_checkpoints_from_before_recipes_were_in_them_go_on(tmp_path) -> None:
    """A distillation of two hours that an update of specpipe would make worthless."""
    start(tmp_path).save()
    state = read_checkpoint(tmp_path / "c.pt")
    torch.save({name: state[name] for name in state if name not in ("recipe", "recent")},
               tmp_path / "c.pt")  # fmt: skip
    run(start(tmp_path))
