"""The pipeline and its target alone, side by side, for those who want to see that they agree."""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Self

from specpipe.actors.pipeline import Pipeline
from specpipe.config import Config
from specpipe.devices import parse_device
from specpipe.errors import SpecpipeError
from specpipe.lossless import Answer, Outcome, Records, compare, key_of
from specpipe.machine import cpu_model
from specpipe.models.interface import SequenceModel
from specpipe.pair import ModelPair
from specpipe.version import __version__


class Comparison:
    """A pipeline and its target alone; neither is started before it is needed.

    Args:
        config: of the pipeline; its sampling has a seed.
        pair: its models.
        records: folder for answers and outcomes.
    """

    def __init__(self, config: Config, pair: ModelPair, records: Path) -> None:
        self._config, self._pair, self._stack = config, pair, ExitStack()
        self._content = {
            "specpipe": __version__,
            "machine": cpu_model(),  # what kernels are chosen by: another may round otherwise
            "target": _sha256(pair.target.paths),
            "settings": asdict(config.sampling),
            "dtype": config.target.dtype,
            "backend": config.target.backend,
            "device": config.target.device,
            "context": pair.context_length,
        }
        draft = _sha256(pair.draft.paths) if pair.draft else None
        run = self._content | {"draft": draft, "config": asdict(config)}
        self._records = Records(records, run)
        self._pipeline = cache(self._start_pipeline)
        self._alone = cache(self._start_alone)
        self._model: Callable[[], SequenceModel] = cache(self._load)

    def compare(self, prompt: list[int]) -> Outcome:
        """Let both answer a prompt, unless this run did so before it was interrupted."""
        key = key_of(self._content | {"prompt": prompt})
        if outcome := self._records.outcome(key):
            return outcome
        pipeline = self._pipeline()
        (completion,) = pipeline.generate([prompt])
        answer = self._records.answer(key)
        if answer is None:
            (own,) = self._alone().generate([prompt])
            answer = Answer.of(own)
            self._records.keep_answer(key, answer)
        sampling = pipeline.sampling_of(self._config.sampling, len(prompt))
        outcome = compare(answer, Answer.of(completion), prompt, sampling, self._model)
        self._records.keep_outcome(key, outcome)
        return outcome

    def finish(self) -> None:
        """All prompts are done: the next run begins anew, but for the target's own answers."""
        self._records.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_pipeline(self) -> Pipeline:
        return self._stack.enter_context(Pipeline.launch(self._config, self._pair))

    def _start_alone(self) -> Pipeline:
        """The target alone, on the very device that it has in the pipeline."""
        device = self._pipeline().workers["target"].device
        config = replace(self._config.override(target={"device": device}), draft=None)
        return self._stack.enter_context(Pipeline.launch(config))

    def _load(self) -> SequenceModel:
        """The target in this process, to look into its logits."""
        from specpipe.models.backends import load  # noqa: PLC0415 (rarely needed)

        device = parse_device(self._pipeline().workers["target"].device)
        return load(
            self._config.target.backend,
            self._pair.target.weights,
            dtype=self._config.target.dtype,
            device="cpu" if device.kind == "cpu" else str(device),
            threads=max(1, len(device.cores)),
            context_length=self._pair.context_length,
            output_size=self._pair.tokenizer.used_size,
        )


def _sha256(paths: Sequence[Path]) -> str:
    """The hashes of a model's files, one after the other."""
    hashes = []
    for path in paths:
        try:
            with path.open("rb") as file:
                hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise SpecpipeError(f"cannot read {path}: {error.strerror or error}") from None
    return " ".join(hashes)
