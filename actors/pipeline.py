"""The pipeline for those who embed it: launch, generate, stream, and nothing left behind."""

import asyncio
import itertools
import secrets
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self

from specpipe.actors.cluster import dashboard_address, ray_session
from specpipe.actors.monitoring import Publisher
from specpipe.actors.nodes import layout_here, layout_on_nodes
from specpipe.actors.stream import AsyncStream, Stream, completion_of
from specpipe.actors.supervisor import Supervisor
from specpipe.channel import socket_directory
from specpipe.completion import Completion
from specpipe.config import Config
from specpipe.dispatch import make_policy, takes_turns
from specpipe.errors import SpecpipeError, UserError
from specpipe.hub_client import HubClient
from specpipe.messages import Submit, UsePolicy, Vocabulary
from specpipe.new_file import new_file
from specpipe.pair import ModelPair, Prompt
from specpipe.sampling import MAX_SEED, Sampling, SamplingParams
from specpipe.tokenizer import Detokenizer
from specpipe.version import __version__
from specpipe.worker_messages import Ready, Role


class Pipeline:
    """A draft and a target at work, each in a Ray actor, and the coordinator between them.

    ```
    with Pipeline.launch(Config()) as pipeline:
        for completion in pipeline.generate(["Why is the sky blue?"], SamplingParams()):
            print(completion.text)
    ```

    Attributes:
        config: as it was launched.
        pair: the models as files, and their tokenizer.
    """

    def __init__(self, config: Config, pair: ModelPair) -> None:
        self.config = config
        self.pair = pair
        self._resources = ExitStack()
        self._requests = itertools.count(1)
        self._taking_turns = False
        self._name = ""
        self._hub: HubClient
        self._supervisor: Supervisor

    @classmethod
    def launch(cls, config: Config, pair: ModelPair | None = None) -> Self:
        """Start everything, and wait until both models are loaded.

        Args:
            config: what to run, where and how.
            pair: the models of `config`, if they were looked up already.

        Raises:
            UserError: what was asked for can't be had. Nothing is left running.
            WorkerError: a worker could not be started. Nothing is left running.
        """
        pipeline = cls(config, pair or ModelPair.find(config))
        try:
            pipeline._start()
        except BaseException:
            pipeline.close()
            raise
        return pipeline

    def _start(self) -> None:
        config, pair = self.config, self.pair
        settings: dict[str, Any] = {
            "policy": config.pipeline.policy,
            "lookahead": config.pipeline.lookahead,
            "prefill_chunk": config.pipeline.prefill_chunk,
            "wait_timeout_s": config.pipeline.wait_timeout_s,
            "about": self._about(),
            "log": asdict(config.log),
        }
        # What this machine lacks is refused before Ray starts; others can be asked only then.
        layout = None if config.names_nodes else layout_here(config, pair)
        settings |= self._new_files()
        directory = self._resources.enter_context(socket_directory())
        self._name = directory.name
        owns_ray = self._resources.enter_context(ray_session(config.ray))
        layout = layout or layout_on_nodes(config, pair)
        self._taking_turns = pair.draft is not None and layout.placement.shares_cores
        settings["taking_turns"] = self._taking_turns
        most = config.pipeline.max_waiting
        self._hub = HubClient(directory, layout.hub_cores, settings, most_waiting=most)
        supervisor = self._supervisor = Supervisor(
            pair, layout, config, directory, self._hub, owns_ray=owns_ray
        )
        self._hub.start(supervisor.hear, Publisher().publish)
        self._hub.post(Vocabulary(tuple(pair.tokenizer.token_bytes)))
        self._resources.callback(self._hub.close)
        self._resources.callback(supervisor.close)
        supervisor.launch()

    def _new_files(self) -> dict[str, str | None]:
        """The files that the hub writes, made before anything is started."""
        record, trace = self.config.pipeline.record, self.config.pipeline.trace
        return {
            "record": record and new_file(record, "a recording"),
            "trace": trace and new_file(trace, "a trace"),
        }

    @property
    def workers(self) -> dict[Role, Ready]:
        """What each worker reported of itself, its device and cores included."""
        return self._supervisor.workers

    @property
    def name(self) -> str:
        """By which metrics, actors and `specpipe top` call this pipeline."""
        return self._name

    @property
    def dashboard(self) -> str | None:
        """Address of Ray's dashboard, if there is one."""
        return dashboard_address()

    @property
    def alive(self) -> bool:
        """Whether requests can be answered: False once the hub or the target is gone for good."""
        return not self._hub.ended and self._supervisor.has("target")

    def _about(self) -> dict[str, str]:
        """The settings that its figures name."""
        config, pair = self.config, self.pair
        settings: dict[str, object] = {
            "model": pair.target.name,
            "draft_model": pair.draft_name if config.draft else "",
            "acceptance": config.pipeline.acceptance,
            "drafter": config.draft.drafter if config.draft else "",
            "lookahead": config.pipeline.lookahead,
            "max_num_seqs": config.pipeline.max_num_seqs,
            "context_length": pair.context_length,
            "version": __version__,
        }
        return {name: str(value) for name, value in settings.items()}

    def use_policy(self, name: str) -> None:
        """Go by another dispatch rule from now on; each keeps what it has learned for its return.

        Raises:
            UserError: if there is none of this name, or the models share cores and it would let
                them work at the same time.
        """
        make_policy(name)
        if self._taking_turns and not takes_turns(name):
            raise UserError(f"draft and target share cores, and the policy {name} lets both work")
        self._hub.post(UsePolicy(name))

    def close(self) -> None:
        """End the workers, close the sockets, remove the files; end Ray if we started it."""
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
    ) -> list[Completion]:
        """Complete all prompts; the results are in their order, `params.n` for each.

        Args:
            prompts: texts, conversations or token ids.
            params: for all of them; the configuration's by default.
            raw: take texts as they are, without the chat template.

        Raises:
            UserError: for a prompt that is empty or too long, or parameters that name unknown
                tokens; nothing is generated then.
            SpecpipeError: when a request ended with an error.
        """
        running: list[Future[Completion]] = []
        try:
            for tokens, seeded, sample in self._asked(prompts, params, raw):
                running.append(self.submit(tokens, seeded, sample=sample))
            return [_whole(future.result()) for future in running]
        finally:
            for future in running:
                future.cancel()

    async def generate_async(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
    ) -> list[Completion]:
        """As `generate`, for asyncio; cancelling the task ends the requests."""
        running: list[Future[Completion]] = []
        # Fewer than it takes to be kept waiting, which would hold up the whole event loop.
        most = max(1, self.config.pipeline.max_waiting // 2)
        try:
            for tokens, seeded, sample in self._asked(prompts, params, raw):
                if len(running) >= most:
                    await asyncio.wrap_future(running[-most])
                running.append(self.submit(tokens, seeded, sample=sample))
            return [_whole(await asyncio.wrap_future(future)) for future in running]
        finally:
            for future in running:
                future.cancel()

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        sample: int = 0,
    ) -> "Future[Completion]":
        """Begin to complete one prompt; any thread may.

        Arguments and errors are those of `stream`. Waits while `max_waiting` requests have not
        finished: whoever submits more than can be answered is slowed.

        Returns:
            The completion to be, also where its finish reason is `error`. Cancelling it ends the
            request; until it is done, that always succeeds.
        """
        return completion_of(self._hub, *self._request(prompt, params, raw, sample))

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        sample: int = 0,
    ) -> Stream:
        """Begin to complete one prompt; iterate over the result for its text.

        Waits as `submit` does. Nobody has to read: what is unread is as large as its answer.

        Args:
            prompt: text, conversation or token ids.
            params: the configuration's by default.
            raw: take a text as it is, without the chat template.
            sample: which of the answers that this seed has to give; 0 to params.n - 1.

        Raises:
            UserError: for a prompt that is empty or too long, or parameters that name unknown
                tokens.
        """
        return Stream(self._hub, *self._request(prompt, params, raw, sample))

    def stream_async(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        sample: int = 0,
    ) -> AsyncStream:
        """As `stream`, for asyncio; to be called where an event loop runs."""
        return AsyncStream(self._hub, *self._request(prompt, params, raw, sample))

    def _asked(
        self, prompts: Sequence[Prompt], params: SamplingParams | None, raw: bool
    ) -> Iterator[tuple[Sequence[int], SamplingParams, int]]:
        """What to submit for these prompts, once all were found good.

        Each prompt has a seed of its own unless one is given, and `n` answers.
        """
        params = params or self.config.sampling
        # Arrays: a million prompts as lists of numbers would take ten times the room.
        encoded = [array("i", self.pair.encode(prompt, raw=raw)) for prompt in prompts]
        for tokens in encoded:
            seeded = with_seed(params)
            for sample in range(params.n):
                yield tokens, seeded, sample

    def _request(
        self, prompt: Prompt, params: SamplingParams | None, raw: bool, sample: int
    ) -> tuple[Detokenizer, Submit]:
        """What makes text of a request's tokens, and the request."""
        params = with_seed(params or self.config.sampling)
        self.pair.check(params)
        tokens = self.pair.encode(prompt, raw=raw)
        sampling = self.sampling_of(params, len(tokens), sample)
        stop = tuple(params.stop)
        number = next(self._requests)
        request = Submit(number, tuple(tokens), params.max_tokens, sampling, stop)
        return Detokenizer(self.pair.tokenizer, stop), request

    def sampling_of(self, params: SamplingParams, prompt_length: int, sample: int = 0) -> Sampling:
        """What the workers are told of parameters that have a seed."""
        assert params.seed is not None
        ends = () if params.ignore_eos else self.pair.tokenizer.stop_token_ids
        return Sampling.of(
            params,
            seed=params.seed,
            sample=sample,
            stop_token_ids=sorted({*ends, *params.stop_token_ids}),
            prompt_length=prompt_length,
            acceptance=self.config.pipeline.acceptance,
        )


def _whole(completion: Completion) -> Completion:
    """A completion that did not end with an error.

    Raises:
        SpecpipeError: if it did.
    """
    if completion.finish_reason == "error":
        raise SpecpipeError(completion.cause)
    return completion


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters, with a random seed if they have none."""
    if params.seed is not None:
        return params
    return replace(params, seed=secrets.randbelow(MAX_SEED))
