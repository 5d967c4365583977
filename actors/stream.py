"""Answers as they are written: piece by piece, in a thread or in asyncio, or whole as a future."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
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

    def take_all(self, updates: Iterable[Tokens | Finish]) -> list[Span]:
        """Note what came; returns what it adds to the text, if anything.

        All at once: whoever leaves between two pieces has not lost the second.
        """
        return [span for update in updates for span in self.take(update)]

    def take(self, update: Tokens | Finish) -> list[Span]:
        """The same for one update."""
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


class Unread:
    """What came and was not read yet: one piece and perhaps an end, however slow the reader is.

    Args:
        wake: is called from any thread once there is something again.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self._wake = wake
        self._lock = threading.Lock()
        self._updates: list[Tokens | Finish] = []

    def put(self, update: Tokens | Finish) -> None:
        """Add what came."""
        with self._lock:
            last = self._updates.pop() if self._updates else None
            if isinstance(last, Tokens) and isinstance(update, Tokens):
                self._updates.append(_joined(last, update))
            else:
                self._updates += [update] if last is None else [last, update]
        if last is None:
            self._wake()

    def take(self) -> list[Tokens | Finish]:
        """All of it."""
        with self._lock:
            taken, self._updates = self._updates, []
        return taken


def _joined(first: Tokens, second: Tokens) -> Tokens:
    return replace(
        first,
        tokens=first.tokens + second.tokens,
        origins=first.origins + second.origins,
        contradicts=first.contradicts or second.contradicts,
        logprobs=first.logprobs + second.logprobs,
    )


class Stream:
    """A completion as it is written: iterate for pieces of text, then read `completion`.

    The pieces joined are the completion's text. Leaving early? Call `abort`, or use it as a
    context manager.
    """

    def __init__(self, hub: HubClient, detokenizer: Detokenizer, request: Submit) -> None:
        self._transcript = Transcript(detokenizer, request)
        self._abort = partial(hub.abort, request.request)
        self._woken = threading.Semaphore(0)
        self._unread = Unread(self._woken.release)
        hub.submit(request, self._unread.put)

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
            self._woken.acquire()
            yield from self._transcript.take_all(self._unread.take())

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
        self._woken = asyncio.Semaphore(0)
        self._unread = Unread(_from_any_thread(self._woken.release))
        hub.submit(request, self._unread.put)

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
            await self._woken.acquire()
            for span in self._transcript.take_all(self._unread.take()):
                yield span

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._transcript.completion is None:
            self.abort()


def _from_any_thread(call: Callable[[], object]) -> Callable[[], None]:
    """What lets the running event loop make a call."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(call)

    return ask


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
