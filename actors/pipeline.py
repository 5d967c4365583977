"""The pipeline for those who embed it: launch, generate, stream, and nothing left behind."""

import itertools
import queue
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

from specpipe.actors.cluster import gpu_count, ray_session
from specpipe.actors.supervisor import Supervisor
from specpipe.channel import socket_directory
from specpipe.completion import Completion
from specpipe.config import Config
from specpipe.devices import place
from specpipe.dispatch import make_policy, takes_turns
from specpipe.errors import SpecpipeError, UserError
from specpipe.hub_client import HubClient
from specpipe.messages import Finish, Origin, Ready, Role, Submit, Tokens, UsePolicy, Vocabulary
from specpipe.new_file import new_file
from specpipe.pair import ModelPair, Prompt
from specpipe.sampling import MAX_SEED, Sampling, SamplingParams, TokenLogprobs
from specpipe.tokenizer import Detokenizer


class Span(NamedTuple):
    """A piece of text, and what the token is that completed it; None for what was held back."""

    text: str
    origin: Origin | None


class Stream:
    """A completion as it is written: iterate for pieces of text, then read `completion`.

    The pieces joined are the completion's text. Leaving early? Call `abort`, or use it as a
    context manager.
    """

    def __init__(self, hub: HubClient, detokenizer: Detokenizer, request: Submit) -> None:
        self._hub = hub
        self._detokenizer = detokenizer
        self._request = request
        self._updates: queue.SimpleQueue[Tokens | Finish] = queue.SimpleQueue()
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._origins: list[Origin] = []
        self._logprobs: list[TokenLogprobs] = []
        self._completion: Completion | None = None
        hub.submit(request, self._updates.put)

    @property
    def completion(self) -> Completion:
        """The whole, once it is finished; waits for it."""
        for _ in self.spans():
            pass
        assert self._completion is not None
        return self._completion

    def abort(self) -> None:
        """Ask for the end; iteration then ends with finish reason `abort`."""
        self._hub.abort(self._request.request)

    def __iter__(self) -> Iterator[str]:
        return (span.text for span in self.spans())

    def spans(self) -> Iterator[Span]:
        """The pieces of text, token by token, each with its origin."""
        while self._completion is None:
            update = self._updates.get()
            if isinstance(update, Finish):
                rest = self._detokenizer.flush()
                self._pieces.append(rest)
                self._completion = self._complete(update)
                spans = [Span(rest, None)]
            else:
                spans = self._take(update)
            yield from (span for span in spans if span.text)

    def _take(self, update: Tokens) -> list[Span]:
        """Note committed tokens; returns what they add to the text.

        All at once: whoever leaves between two pieces has not lost the second.
        """
        self._token_ids += update.tokens
        self._origins += update.origins
        self._logprobs += update.logprobs
        pieces = [self._detokenizer.push([token]) for token in update.tokens]
        self._pieces += pieces
        return [Span(*each) for each in zip(pieces, update.origins, strict=True)]

    def _complete(self, finish: Finish) -> Completion:
        sampling = self._request.sampling
        return Completion(
            text="".join(self._pieces),
            token_ids=self._token_ids,
            finish_reason=finish.reason,
            cause=finish.cause,
            seed=sampling.seed,
            sample=sampling.sample,
            origins=self._origins,
            logprobs=None if sampling.logprobs is None else self._logprobs,
            metrics=finish.metrics,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._completion is None:
            self.abort()


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
        placement = place(
            config.draft.device if config.draft else None,
            config.target.device,
            gpus=gpu_count(),
            draft_computes=pair.draft is not None,
            taking_turns=takes_turns(config.pipeline.policy),
        )
        self._taking_turns = pair.draft is not None and placement.shares_cores
        directory = self._resources.enter_context(socket_directory())
        self._hub = HubClient(
            directory,
            placement.target.cores,
            {
                "policy": config.pipeline.policy,
                "lookahead": config.pipeline.lookahead,
                "prefill_chunk": config.pipeline.prefill_chunk,
                "wait_timeout_s": config.pipeline.wait_timeout_s,
                "taking_turns": self._taking_turns,
                "record": config.pipeline.record
                and new_file(config.pipeline.record, "a recording"),
                "trace": config.pipeline.trace and new_file(config.pipeline.trace, "a trace"),
            },
        )
        owns_ray = self._resources.enter_context(ray_session(config.ray))
        supervisor = self._supervisor = Supervisor(
            pair, placement, config, directory, self._hub, owns_ray=owns_ray
        )
        self._hub.start(supervisor.note_ready)
        self._hub.post(Vocabulary(tuple(pair.tokenizer.token_bytes)))
        self._resources.callback(self._hub.close)
        self._resources.callback(supervisor.close)
        supervisor.launch()

    @property
    def workers(self) -> dict[Role, Ready]:
        """What each worker reported of itself, its device and cores included."""
        return self._supervisor.workers

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
        params = params or self.config.sampling
        encoded = [self.pair.encode(prompt, raw=raw) for prompt in prompts]
        with ExitStack() as streams:
            running = [
                streams.enter_context(self.stream(tokens, seeded, sample=sample))
                for tokens in encoded
                for seeded in [with_seed(params)]
                for sample in range(params.n)
            ]
            completions = [stream.completion for stream in running]
        for completion in completions:
            if completion.finish_reason == "error":
                raise SpecpipeError(completion.cause)
        return completions

    def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        raw: bool = False,
        sample: int = 0,
    ) -> Stream:
        """Begin to complete one prompt; iterate over the result for its text.

        Args:
            prompt: text, conversation or token ids.
            params: the configuration's by default.
            raw: take a text as it is, without the chat template.
            sample: which of the answers that this seed has to give; 0 to params.n - 1.

        Raises:
            UserError: for a prompt that is empty or too long, or parameters that name unknown
                tokens.
        """
        params = with_seed(params or self.config.sampling)
        self.pair.check(params)
        tokens = self.pair.encode(prompt, raw=raw)
        sampling = self.sampling_of(params, len(tokens), sample)
        stop = tuple(params.stop)
        number = next(self._requests)
        request = Submit(number, tuple(tokens), params.max_tokens, sampling, stop)
        return Stream(self._hub, Detokenizer(self.pair.tokenizer, stop), request)

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


def with_seed(params: SamplingParams) -> SamplingParams:
    """The same parameters, with a random seed if they have none."""
    if params.seed is not None:
        return params
    return replace(params, seed=secrets.randbelow(MAX_SEED))
