"""The first stage of a distillation: the target writes what the draft is to learn from."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from specpipe.models.loader import load_model, resolve_dtype, slots_in_half
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import open_model
from specpipe.models.store import ModelFiles
from specpipe.tokenizer import Tokenizer
from specpipe.training.frame import Frame
from specpipe.training.optimising import Told
from specpipe.training.scripts import Director, check_prompts
from specpipe.training.shards import Conversation, read_shard, shard_seconds, write_shard
from specpipe.training.writing import AT_ONCE, AT_ONCE_ON_GPU, LONGEST_REPLY, write

LONGEST = 1024
"""Most tokens of a conversation."""

# Conversations in a shard: enough to keep a pass full for most of its time.
_CONVERSATIONS = {"cpu": 2 * AT_ONCE, "cuda": 4 * AT_ONCE_ON_GPU}
_MOST_SHARDS = 100_000
_LEAST = 2  # shards: one to learn from, and one to see what was learned
_LEAST_WRITTEN = 16  # conversations of a shard that time cuts short


def gather(
    target: ModelFiles,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    seconds: float,
    threads: int,
    device: str = "cpu",
    prompts: Sequence[str] = (),
    seed: int = 0,
    told: Told,
) -> list[Path]:
    """Write shards until the time is up; those that are there already count.

    Args:
        target: whose conversations and laws are wanted.
        tokenizer: its own.
        folder: where shards lie.
        seconds: how long it may take, before an interruption and after. At least two shards are
            made in any case; where a slow target's would take longer, they are cut short, and
            have the conversations that ended first. After these another is begun if half of it
            can be expected to be written in time.
        threads: cores that compute.
        device: cpu, or cuda:N.
        prompts: what conversations begin with; left out, the target writes the user's turns too.
        seed: of what is drawn.
        told: of the progress.

    Returns:
        All shards, oldest first; each depends on those before it and on nothing else.

    Raises:
        UserError: if the target can't be loaded, or a shard not be read or written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = list_shards(folder)
    if _are_enough(shards, seconds):
        return shards
    conversations = _CONVERSATIONS[device.partition(":")[0]]
    config = open_model(target.weights).config
    longest = min(LONGEST, config.context_length)
    at_once = _at_once(replace(config, context_length=longest), device)
    model = load_model(
        target.weights,
        device=device,
        threads=threads,
        num_slots=at_once,
        pass_rows=at_once,  # twice what a table says, since newcomers bring whole prompts
        output_size=tokenizer.used_size,
        context_length=longest,
    )
    frame = Frame.of(tokenizer)
    check_prompts(prompts, tokenizer, longest - LONGEST_REPLY)
    director = Director(tokenizer, frame, prompts)
    earlier = 0  # conversations
    for path in shards:
        known = read_shard(path)
        earlier += len(known)
        _learn(director, tokenizer, frame, known)
    while not _are_enough(shards, seconds):
        begun, spent = time.monotonic(), sum(map(shard_seconds, shards))
        # The first one must leave time for another.
        allowed = seconds / _LEAST * (len(shards) + 1) if len(shards) < _LEAST else math.inf
        scripts = director.scripts(seed * _MOST_SHARDS + len(shards), conversations)
        written: list[Conversation] = []
        for each in write(model, frame, scripts, longest):
            written.append(each)
            passed = spent + time.monotonic() - begun
            told(min(1.0, passed / seconds), f"conversation {earlier + len(written)}")
            if passed >= allowed and len(written) >= _LEAST_WRITTEN:
                break
        path = folder / f"{len(shards):05}.safetensors"
        write_shard(path, written, time.monotonic() - begun)
        shards.append(path)
        earlier += len(written)
        _learn(director, tokenizer, frame, written)
    return shards


def _are_enough(shards: Sequence[Path], seconds: float) -> bool:
    """Whether there is no time for another shard."""
    if len(shards) < _LEAST:
        return False
    spent = sum(map(shard_seconds, shards))
    return spent + spent / len(shards) / 2 > seconds


def list_shards(folder: Path) -> list[Path]:
    """The shards of a folder, oldest first."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def _at_once(config: DecoderConfig, device: str) -> int:
    """How many conversations are in work: on a GPU no more than it has memory for."""
    if device == "cpu":
        return AT_ONCE
    fit = slots_in_half(config, resolve_dtype("auto", device), device)
    return max(2, min(AT_ONCE_ON_GPU, fit))


def _learn(
    director: Director, tokenizer: Tokenizer, frame: Frame, written: Sequence[Conversation]
) -> None:
    """Let later scripts be about what was written."""
    footer = tokenizer.decode(frame.footer)
    for each in written:
        before = tokenizer.decode(each.tokens[len(frame.header) : each.reply].tolist())
        reply = tokenizer.decode(each.tokens[each.reply :].tolist())
        director.learn(before.removesuffix(footer), reply)
