"""The loop that training from text and distillation share: AdamW, a schedule, checkpoints.

Batches depend on the seed and the step alone, so a run that goes on from a checkpoint sees what it
would have seen, and ends with the same weights.
"""

import io
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from specpipe.errors import UserError
from specpipe.training.shards import write_atomically

Told = Callable[[float, str], None]
"""Called with the share that is done, and a line about it."""

StageTold = Callable[[str, float, str], None]
"""As Told, with a stage's name first."""

_SAVE_S = 60.0  # between checkpoints: as much is lost at most
_AVERAGED = 20  # steps in an entry of the curve


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long to train, and how fast.

    Attributes:
        steps: how many; None: until the time is up.
        seconds: of training, those before an interruption included; None: until the steps are done.
        learning_rate: the highest.
        warmup: steps in which it rises.
        shape: how it falls: "cosine", or "linear" over the last part of the way.
        decay: that part.
        lowest: what is left at the end, as a share of the highest.
    """

    steps: int | None
    seconds: float | None
    learning_rate: float
    warmup: int = 40
    shape: str = "cosine"
    decay: float = 0.5
    lowest: float = 0.0

    def share(self, step: int, elapsed: float) -> float:
        """How much of the way is done."""
        shares = [0.0]
        if self.steps is not None:
            shares.append(step / self.steps)
        if self.seconds is not None:
            shares.append(elapsed / self.seconds if self.seconds > 0 else 1.0)
        return min(1.0, max(shares))

    def rate(self, step: int, share: float) -> float:
        """The learning rate of a step."""
        if self.shape == "cosine":
            left = (1 + math.cos(math.pi * share)) / 2
        else:
            left = min(1.0, (1 - share) / self.decay)
        left = self.lowest + (1 - self.lowest) * left
        return self.learning_rate * left * min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(slots=True)
class Curve:
    """What was measured on the way.

    Attributes:
        train: (step, mean loss since the last entry).
        held_out: (step, loss on what is not trained on).
        seconds: spent so far.
        tokens: seen so far.
    """

    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0


class Training:
    """Trains a network; what there is of it is on disk after each `every` steps, or a minute.

    Args:
        network: whose parameters that require a gradient are trained.
        schedule: how long and how fast.
        checkpoint: file to go on from, and to write.
        slower: parameters whose names begin so learn at a third of the rate.
        weight_decay: of matrices.
        clip: longest gradient.
        every: steps between looks at what is held out; a checkpoint follows each.
        recipe: what is trained by, in one text; a checkpoint of another one is refused.

    Raises:
        UserError: if there is a checkpoint that is broken, or of another model or recipe.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        checkpoint: Path,
        *,
        slower: Sequence[str] = (),
        weight_decay: float = 0.01,
        clip: float = 1.0,
        every: int = 200,
        recipe: str = "",
    ) -> None:
        self.network, self.schedule, self.step, self.curve = network, schedule, 0, Curve()
        self._recipe, self._recent = recipe, list[float]()
        self._checkpoint, self._clip, self._every = checkpoint, clip, every
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                kind = (name.startswith(tuple(slower)) if slower else False, parameter.ndim > 1)
                groups.setdefault(kind, []).append(parameter)
        self._optimizer = torch.optim.AdamW(
            [
                {"params": group, "pace": 1 / 3 if slow else 1.0,
                 "weight_decay": weight_decay if decays else 0.0}
                for (slow, decays), group in groups.items()
            ],
            lr=schedule.learning_rate,
            betas=(0.9, 0.95),
        )  # fmt: skip
        self._resume()

    def run(
        self,
        loss: Callable[[int], tuple[Tensor, int]],
        held_out: Callable[[], float],
        told: Told,
        *,
        accumulate: int = 1,
    ) -> None:
        """Train until the schedule is at its end.

        Args:
            loss: of a micro-batch by its number, with the tokens that it took.
            held_out: the loss on what is not trained on.
            told: of the progress.
            accumulate: micro-batches in a step.

        Raises:
            UserError: if the loss is no number any more, or a checkpoint can't be written.
        """
        self.network.train()
        begun = time.monotonic() - self.curve.seconds
        saved = self.curve.seconds
        while (share := self.schedule.share(self.step, self.curve.seconds)) < 1:
            self._recent.append(self._take_step(loss, share, accumulate))
            self.step += 1
            self.curve.seconds = time.monotonic() - begun
            if len(self._recent) == _AVERAGED:
                self.curve.train.append((self.step, sum(self._recent) / _AVERAGED))
                self._recent.clear()
            looks = self.step % self._every == 0
            if looks:
                self._look(held_out)
            if looks or self.curve.seconds - saved >= _SAVE_S:
                self.save()
                saved = self.curve.seconds
                begun = time.monotonic() - saved  # neither is counted
            told(self.schedule.share(self.step, self.curve.seconds), self._line())
        if not self.curve.held_out or self.curve.held_out[-1][0] != self.step:
            self._look(held_out)
        self.save()

    @property
    def slows_down(self) -> bool:
        """Whether the rate of a linear schedule falls already."""
        return 1 - self.schedule.share(self.step, self.curve.seconds) < self.schedule.decay

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            UserError: if it can't be written; the one before is kept.
        """
        trained = {n: p.data for n, p in self.network.named_parameters() if p.requires_grad}
        state = {
            "step": self.step,
            "curve": asdict(self.curve),
            "trained": trained,
            "optimizer": self._optimizer.state_dict(),
            "random": torch.get_rng_state(),
            "recipe": self._recipe,
            "recent": self._recent,
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["random_cuda"] = torch.cuda.get_rng_state_all()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self._checkpoint, buffer.getvalue())

    def _take_step(
        self, loss: Callable[[int], tuple[Tensor, int]], share: float, accumulate: int
    ) -> float:
        rate = self.schedule.rate(self.step, share)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["pace"]
        total = 0.0
        for part in range(accumulate):
            value, tokens = loss(self.step * accumulate + part)
            (value / accumulate).backward()  # type: ignore[no-untyped-call]
            total += value.item() / accumulate
            self.curve.tokens += tokens
        if not math.isfinite(total):
            raise UserError(
                f"the loss is {total} after {self.step} steps: lower the learning rate; the "
                "checkpoint from before is intact"
            )
        nn.utils.clip_grad_norm_(self.network.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return total

    def _look(self, held_out: Callable[[], float]) -> None:
        self.network.eval()
        with torch.no_grad():
            self.curve.held_out.append((self.step, held_out()))
        self.network.train()

    def _line(self) -> str:
        loss = f", loss {self.curve.train[-1][1]:.3f}" if self.curve.train else ""
        held = f", held out {self.curve.held_out[-1][1]:.3f}" if self.curve.held_out else ""
        return f"step {self.step}{loss}{held}"

    def _resume(self) -> None:
        if not self._checkpoint.exists():
            return
        state = read_checkpoint(self._checkpoint)
        # Distillation keeps its recipe beside the checkpoint, and old ones have none.
        if state.get("recipe", "") != self._recipe:
            raise UserError(
                f"{self._checkpoint} is of another recipe: ask for that one again, or remove the "
                "file to begin anew"
            )
        try:
            self.step, self.curve = int(state["step"]), Curve(**state["curve"])
            self._recent = [float(loss) for loss in state.get("recent", [])]
            self._optimizer.load_state_dict(state["optimizer"])
            torch.set_rng_state(state["random"])
            if cuda := state.get("random_cuda"):
                torch.cuda.set_rng_state_all(cuda)
            found = self.network.load_state_dict(state["trained"], strict=False)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self._checkpoint} is from another model ({reason:.120}): remove it to begin anew"
            ) from None
        assert not found.unexpected_keys


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Training.save` wrote: tensors and plain values, nothing that could be a program.

    Raises:
        UserError: if it is broken or holds something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path} is no checkpoint ({reason:.100}): remove it to begin anew"
        ) from None
    if not isinstance(state, dict):
        raise UserError(f"{path} is no checkpoint: remove it to begin anew")
    return state
