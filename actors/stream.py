"""Answers as they are written: piece by piece, in a thread or in asyncio, or whole as a future."""

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import NamedTuple, Self

from specpipe.completion import Completion
from specpipe.hub_client import HubClient
from specpipe.messages import Finish, Origin, Submit, Tokens
from specpipe.sampling import TokenLogprobs
from specpipe.tokenizer import Detokenizer


class Span(NamedTuple):
    """A piece of text, and what the token is that completed it; None for what was held back."""

    text: str
    origin: Origin | None


class Transcript:
    """An answer in the making.

    Args:
        detokenizer: a fresh one, that knows the request's stop texts.
        request: what was asked.

    Attributes:
        completion: the whole, once it is finished.
    """

    def __init__(self, detokenizer: Detokenizer, request: Submit) -> None:
        self._detokenizer = detokenizer
        self._request = request
        self._pieces: list[str] = []
        self._token_ids: list[int] = []
        self._origins: list[Origin] = []
        self._logprobs: list[TokenLogprobs] = []
        self.completion: Completion | None = None

    def take(self, update: Tokens | Finish) -> list[Span]:
        """Note what came; returns what it adds to the text, if anything.

        All at once: whoever leaves between two pieces has not lost the second.
        """
        if isinstance(update, Finish):
            rest = self._detokenizer.flush()
            self._pieces.append(rest)
            self.completion = self._complete(update)
            spans = [Span(rest, None)]
        else:
            self._token_ids += update.tokens
            self._origins += update.origins
            self._logprobs += update.logprobs
            pieces = [self._detokenizer.push([token]) for token in update.tokens]
            self._pieces += pieces
            spans = [Span(*each) for each in zip(pieces, update.origins, strict=True)]
        return [span for span in spans if span.text]

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


class Stream:
    """A completion as it is written: iterate for pieces of text, then read `completion`.

    The pieces joined are the completion's text. Leaving early? Call `abort`, or use it as a
    context manager.
    """

    def __init__(self, hub: HubClient, detokenizer: Detokenizer, request: Submit) -> None:
        self._transcript = Transcript(detokenizer, request)
        self._abort = partial(hub.abort, request.request)
        self._updates: queue.SimpleQueue[Tokens | Finish] = queue.SimpleQueue()
        hub.submit(request, self._updates.put)

    @property
    def completion(self) -> Completion:
        """The whole, once it is finished; waits for it."""
        for _ in self.spans():
            pass
        assert self._transcript.completion is not None
        return self._transcript.completion

    def abort(self) -> None:
        """Ask for the end; iteration then ends with finish reason `abort`."""
        self._abort()

    def __iter__(self) -> Iterator[str]:
        return (span.text for span in self.spans())

    def spans(self) -> Iterator[Span]:
        """The pieces of text, token by token, each with its origin."""
        while self._transcript.completion is None:
            yield from self._transcript.take(self._updates.get())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._transcript.completion is None:
            self.abort()


class AsyncStream:
    """A `Stream` for asyncio: `async for` gives pieces of text, `await completion()` the whole.

    Belongs to the event loop in which it was made. Leaving early? Call `abort`, or use it as an
    asynchronous context manager.
    """

    def __init__(self, hub: HubClient, detokenizer: Detokenizer, request: Submit) -> None:
        self._transcript = Transcript(detokenizer, request)
        self._abort = partial(hub.abort, request.request)
        self._updates: asyncio.Queue[Tokens | Finish] = asyncio.Queue()
        hub.submit(request, _into(self._updates))

    async def completion(self) -> Completion:
        """The whole, once it is finished."""
        async for _ in self.spans():
            pass
        assert self._transcript.completion is not None
        return self._transcript.completion

    def abort(self) -> None:
        """Ask for the end; iteration then ends with finish reason `abort`."""
        self._abort()

    async def __aiter__(self) -> AsyncIterator[str]:
        async for span in self.spans():
            yield span.text

    async def spans(self) -> AsyncIterator[Span]:
        """The pieces of text, token by token, each with its origin."""
        while self._transcript.completion is None:
            for span in self._transcript.take(await self._updates.get()):
                yield span

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transcript.completion is None:
            self.abort()


def _into(updates: "asyncio.Queue[Tokens | Finish]") -> Callable[[Tokens | Finish], None]:
    """From any thread into a queue of the running event loop."""
    loop = asyncio.get_running_loop()

    def put(update: Tokens | Finish) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(updates.put_nowait, update)

    return put


def completion_of(
    hub: HubClient, detokenizer: Detokenizer, request: Submit
) -> "Future[Completion]":
    """Hand a request in; the future's result is its completion, and cancelling it aborts."""
    transcript, future = Transcript(detokenizer, request), Future[Completion]()

    def take(update: Tokens | Finish) -> None:
        transcript.take(update)
        if transcript.completion and future.set_running_or_notify_cancel():
            future.set_result(transcript.completion)

    def end(done: "Future[Completion]") -> None:
        if done.cancelled():
            hub.abort(request.request)

    hub.submit(request, take)
    future.add_done_callback(end)
    return future
