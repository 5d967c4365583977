"""Makes a draft for a target: it writes, the draft learns, and what came of it is judged.

Everything is kept in a folder beside the draft's future place until the draft is there, so each
stage goes on where it was interrupted.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from specpipe.errors import UserError
from specpipe.models.decoder import Decoder
from specpipe.models.interface import DRAFT_DTYPE
from specpipe.models.loader import build, load_model
from specpipe.models.prune import format_layers
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import ModelSource, open_model
from specpipe.models.store import ModelFiles, check_absent, new_folder
from specpipe.pair import read_model
from specpipe.prompts import Question
from specpipe.simulated_workers import Hardware
from specpipe.tokenizer import Tokenizer
from specpipe.training.distilling import Lessons
from specpipe.training.evaluation import (
    LONGEST_ANSWER,
    TEMPERATURES,
    Judgement,
    Task,
    evaluate,
    make_drafters,
)
from specpipe.training.export import draft_weights, write_draft
from specpipe.training.gathering import gather, list_shards
from specpipe.training.network import Network
from specpipe.training.optimising import Curve, Schedule, StageTold, Training
from specpipe.training.report import Findings, write_report
from specpipe.training.shards import Conversation, read_shard, shard_seconds
from specpipe.training.student import coverage, head_ids, make_student, usual_layers
from specpipe.training.work_folder import open_work
from specpipe.training.worth import expect, time_pair
from specpipe.training.writing import AT_ONCE

_WRITING, _LEARNING = 0.5, 0.45  # shares of the time: more text helps more than more steps
_DECAY = 0.38  # share of learning in which the rate falls, and acceptance is what is learned for
_STEPS_A_PASS = 4.5  # by the bytes that they read: in time 6 to 7, since a draft's stay in caches
_HELD_OUT = 48  # conversations: enough to see a curve
_LOOK_EVERY, _LOOK_EVERY_ON_GPU = 50, 1000  # steps
_CONTEXT = 2048


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a draft is made by.

    Attributes:
        hours: of work, those before an interruption included.
        layers: the target's, to begin with; None: as many as are worth their time.
        head_tokens: how many tokens the head covers.
        learning_rate: the highest.
        seed: of all that is drawn.
        threads: cores that compute.
        device: where the target writes and the draft learns: cpu, or cuda:N.
        prompts: what conversations begin with; none: the target writes the user's turns too.
    """

    hours: float
    layers: tuple[int, ...] | None = None
    head_tokens: int = 8192
    learning_rate: float = 2e-3
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    prompts: tuple[str, ...] = ()


class Distillation:
    """One draft in the making.

    Args:
        target: that it is for.
        folder: the draft's, which is not there yet.
        recipe: how to make it; that of an earlier start, apart from hours, threads and device.
        questions: prompts to judge it by, which it does not learn from.
        told: of the progress.

    Raises:
        UserError: if the recipe is another one than before, or the folder is there.
    """

    def __init__(
        self,
        target: ModelFiles,
        folder: Path,
        recipe: Recipe,
        questions: Sequence[Question],
        *,
        told: StageTold,
    ) -> None:
        check_absent(folder)
        self.target, self.folder, self._told = target, folder, told
        self.tokenizer, self.config = read_model(target.weights)
        if self.config.head_ids is not None:
            raise UserError(f"{target.name} is a draft itself: name the target that it is for")
        worthwhile = worthwhile_layers(self.config, recipe.head_tokens)
        self.layers = recipe.layers or usual_layers(worthwhile, self.config.layers)
        self.recipe = recipe
        self._tasks = [
            Task(_encoded(self.tokenizer, each.text), each.category) for each in questions
        ]
        self._check_tasks()
        # Hours, threads and the device may change on the way.
        fixed = self._for_people() | {"target": target.name, "prompts": list(recipe.prompts)}
        del fixed["hours"], fixed["threads"], fixed["device"]
        self.work = open_work(folder, "distill", fixed)
        self._checkpoint, self._data = self.work / "checkpoint.pt", self.work / "data"

    def run(self) -> Findings:
        """All stages; at the end the draft is in its folder.

        Raises:
            UserError: as the stages do.
        """
        torch.set_num_threads(self.recipe.threads)
        data = self._gathered()
        # Nobody was told of the texts of the last shard; those that end first are the shortest.
        held_out = data[-1][:: max(1, len(data[-1]) // _HELD_OUT)][:_HELD_OUT]
        chosen = set(map(id, held_out))
        lessons = [each for shard in data for each in shard if id(each) not in chosen]
        always, usable = self.tokenizer.stop_token_ids, self.tokenizer.used_size
        ids = head_ids(lessons, self.recipe.head_tokens, usable, always)
        source = open_model(self.target.weights)
        network = make_student(source, self.layers, ids, _CONTEXT)
        curve = self._learned(network, lessons, held_out)
        judgements, times = self._judged(_decoder(network, source, usable, self._judged_context()))
        findings = Findings(
            target=self.target.name,
            draft=self.folder.name,
            recipe=self._for_people(),
            conversations=sum(map(len, data)),
            written=int(sum(each.written.sum() for shard in data for each in shard)),
            coverage=coverage(held_out, ids),
            parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
            curve=curve,
            judgements=judgements,
            times=times,
            expected={
                temperature: {
                    source: expect(times, guesses) for source, guesses in judged.guesses.items()
                }
                for temperature, judged in judgements.items()
            },
        )
        self._publish(network, findings)
        return findings

    # -- stages

    def _gathered(self) -> list[list[Conversation]]:
        """What the target writes; no more of it once learning began.

        Other text would give the head other tokens, and the weights learned so far to the wrong
        ones.
        """
        begun = self._checkpoint.exists()
        shards = gather(
            self.target,
            self.tokenizer,
            self._data,
            seconds=0.0 if begun else self.recipe.hours * 3600 * _WRITING,
            threads=self.recipe.threads,
            device=self.recipe.device,
            prompts=self.recipe.prompts,
            seed=self.recipe.seed,
            told=partial(self._told, "writing"),
        )
        return [read_shard(path) for path in shards]

    def _learned(
        self, network: Network, data: Sequence[Conversation], held_out: Sequence[Conversation]
    ) -> Curve:
        """Train the network."""
        assert network.config.head_ids is not None
        ids, size = network.config.head_ids, network.config.vocab_size
        device = self.recipe.device
        lessons = Lessons(data, ids, size, self.recipe.seed, device)
        unseen = Lessons(held_out, ids, size, device=device)
        hours, written = self.recipe.hours, sum(map(shard_seconds, list_shards(self._data)))
        # A slow target may have taken longer to write, but the whole is bounded.
        left = hours * 3600 * (_WRITING + _LEARNING) - written
        seconds = max(left, hours * 3600 * _LEARNING / 2)
        training = Training(
            network.to(device),
            Schedule(None, seconds, self.recipe.learning_rate, shape="linear", decay=_DECAY),
            self._checkpoint,
            slower=("head.",),
            every=_LOOK_EVERY if device == "cpu" else _LOOK_EVERY_ON_GPU,
        )
        training.run(
            lambda number: lessons.loss(network, number, by_acceptance=training.slows_down),
            partial(unseen.mean_loss, network),
            partial(self._told, "learning"),
        )
        network.to("cpu")
        return training.curve

    def _judged(self, draft: Decoder) -> tuple[dict[float, Judgement], Hardware]:
        """How often the draft is right on prompts that it never saw, and how long a step takes."""
        target = load_model(
            self.target.weights,
            threads=max(1, self.recipe.threads - 1),  # as in a pipeline: the draft has one core
            num_slots=AT_ONCE,
            output_size=self.tokenizer.used_size,
            context_length=self._judged_context(),
        )
        stops, parts = self.tokenizer.stop_token_ids, len(self._tasks) + 1
        times = time_pair(target, draft)
        drafters, found = make_drafters(draft, target.context_length), {}
        for number, temperature in enumerate(TEMPERATURES):
            work = evaluate(target, drafters, self._tasks, stops, temperature=temperature)
            for part, judgement in enumerate(work, number * parts):
                share = min(1.0, part / (parts * len(TEMPERATURES)))
                self._told("judging", share, f"answers at temperature {temperature:g}")
                if judgement is not None:
                    found[temperature] = judgement
        return found, times

    def _publish(self, network: Network, findings: Findings) -> None:
        """Put the draft and the report in their place, and remove what was kept on the way."""
        beside = (self.folder.parent / self.target.name).resolve() == self.target.folder.resolve()
        named = self.target.name if beside else str(self.target.weights.resolve())
        with new_folder(self.folder) as unfinished:
            write_draft(unfinished, network, self.target, named, findings.recipe)
            write_report(unfinished, findings)
        shutil.rmtree(self.work)

    # -- details

    def _judged_context(self) -> int:
        return max(len(task.prompt) for task in self._tasks) + LONGEST_ANSWER

    def _check_tasks(self) -> None:
        """Refuse prompts that the target can't answer.

        Raises:
            UserError: naming the first.
        """
        room = self.config.context_length - LONGEST_ANSWER
        for number, task in enumerate(self._tasks, 1):
            if len(task.prompt) > room:
                raise UserError(
                    f"prompt {number} to judge by has {len(task.prompt)} tokens; beside an answer "
                    f"the context of {self.target.name} has room for {room}: leave it out"
                )

    def _for_people(self) -> dict[str, Any]:
        """The recipe as `source.json` and the report have it."""
        values = asdict(self.recipe) | {"layers": format_layers(self.layers)}
        values["prompts"] = len(self.recipe.prompts) or "written by the target"
        return values


def worthwhile_layers(config: DecoderConfig, head_tokens: int) -> int:
    """So many layers that a guess takes less than a sixth of what the target's pass takes.

    Both read their weights, which take about as many bytes where the target's come in blocks.
    """
    layer = sum(outputs * inputs for outputs, inputs in config.matrices().values())
    whole = config.layers * layer + config.vocab_size * config.width
    room = whole / _STEPS_A_PASS - min(head_tokens, config.vocab_size) * config.width
    return max(min(2, config.layers), min(config.layers // 2, round(room / layer)))


def _encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    if not tokenizer.has_chat_template:
        return tokenizer.encode(text)
    return tokenizer.encode_chat([{"role": "user", "content": text}])


def _decoder(
    network: Network, target: ModelSource, output_size: int, context_length: int
) -> Decoder:
    """The draft as it runs on a CPU, with one slot."""
    own = draft_weights(network, target.config)
    config = replace(
        target.config,
        layers=network.config.layers,
        head_ids=network.config.head_ids,
        context_length=context_length,
        output_size=output_size,
    )
    source = ModelSource(
        config, lambda name: own[name].copy() if name in own else target.read(name)
    )
    return build(config, source, dtype=DRAFT_DTYPE, narrow=True)
