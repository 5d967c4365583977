"""What happened when, as a Chrome trace: for Perfetto, `chrome://tracing` and `specpipe trace`.

The file is a JSON array, one event a line, so that what a killed run leaves can still be read. Each
worker is a row, and so is the coordinator. Times are microseconds since the first request came.

| row | slices | marks |
|---|---|---|
| draft | a guess, named after its source; `read`: a pass that made none, or was dropped | waits |
| target | `verify`: a pass that judged a block; `prefill`: one that judged nothing | |
| coordinator | `commit`, or `rollback` where that contradicts what was drafted | requests, losses |

What the target looks up itself is drawn in the draft's row, too. An arrow leads from a block's last
guess to its verification, and on to the commit.

The tracer sees what crosses the coordinator's border: events in, commands out. It is told once
they are on their way, so it costs nobody's time.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TextIO, get_args

from specpipe.events import Command, Event, Send
from specpipe.messages import Finish, Gone, Lost, Submit, Tokens, Vocabulary
from specpipe.outstanding import Outstanding
from specpipe.worker_messages import (
    Block,
    Exhausted,
    Extend,
    LookedUp,
    Proceed,
    Progress,
    Verdict,
)

Row = Literal["draft", "target", "coordinator"]
ROWS: tuple[Row, ...] = get_args(Row)

_PROCESS = 1
_INSTANT_US = 1.0  # how long what takes no time is drawn
_Event = dict[str, Any]


class Tracer:
    """Writes a trace.

    Args:
        file: to write to, from its beginning.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._origin: float | None = None  # the moment that counts as 0
        self._token_bytes: Sequence[bytes] = ()
        self._outstanding = Outstanding()
        self._judged: dict[int, Extend] = {}  # by request: the latest that a verdict came on
        # When each position of a request that runs was guessed.
        self._guessed: dict[int, dict[int, float]] = {}
        self._lines: list[str] = ["["]
        self._describe("process_name", 0, {"name": "specpipe"})
        for number, row in enumerate(ROWS):
            self._describe("thread_name", number, {"name": row})
            self._describe("thread_sort_index", number, {"sort_index": number})

    def note(self, event: Event, commands: Sequence[Command], now: float) -> None:
        """An event came at this moment, and was answered by these commands."""
        arguments: dict[str, Any]
        match event:
            case Vocabulary(token_bytes):
                self._token_bytes = token_bytes
            case Submit():
                self._guessed[event.request] = {}
                arguments = {"request": event.request, "prompt_tokens": len(event.tokens)}
                self._mark("coordinator", "submit", now, arguments)
            case Block():
                self._note_block(event)
            case Exhausted():
                arguments = {"request": event.request, "reason": event.reason}
                self._mark("draft", f"waits: {event.reason}", now, arguments)
            case Progress():
                self._note_progress(event)
            case Verdict():
                self._note_verdict(event)
            case Lost() | Gone():
                self._mark("coordinator", f"{event.role} lost", now, {})
        for command in commands:
            self._note_command(command, now)

    def flush(self) -> None:
        """Write what was noted, once nobody waits for anything."""
        if self._lines:
            self._file.write("\n".join(self._lines) + "\n")
            self._file.flush()
            self._lines = []

    def close(self) -> None:
        """Write the end."""
        self._describe("process_labels", 0, {"labels": "complete"})
        self._lines += [self._lines.pop().rstrip(","), "]"]
        self.flush()

    def _note_command(self, command: Command, now: float) -> None:
        match command:
            case Send(message=Extend() | Proceed() as message):
                self._outstanding.note(message)
            case Tokens():
                self._note_commit(command, now)
            case Finish():
                arguments = {"request": command.request, "reason": command.reason}
                self._mark("coordinator", f"finish: {command.reason}", now, arguments)
                self._outstanding.forget(command.request)
                self._judged.pop(command.request, None)
                self._guessed.pop(command.request, None)

    def _note_block(self, block: Block) -> None:
        request = block.request
        guessed = self._guessed.get(request, {})  # it may come late
        earlier = len(block.begun) - len(block.tokens)
        for begun, ended in zip(block.begun[:earlier], block.ended, strict=False):
            self._slice("draft", "read", begun, ended, {"request": request})
        for i, token in enumerate(block.tokens):
            begun, ended = block.begun[earlier + i], block.ended[earlier + i]
            made = LookedUp(token, block.confidences[i], block.sources[i], begun, ended)
            guessed[block.start + i] = begun
            self._note_guess(request, block.start + i, made)

    def _note_guess(self, request: int, position: int, made: LookedUp) -> None:
        arguments = {
            "request": request,
            "position": position,
            "text": self._text((made.token,)),
            "confidence": round(made.confidence, 4),
        }
        self._slice("draft", made.source, made.begun, made.ended, arguments)

    def _note_progress(self, progress: Progress) -> None:
        if extend := self._outstanding.answered(progress):
            arguments = {
                "request": progress.request,
                "tokens": len(extend.tokens) - progress.reused,
                "cached": progress.reused,
            }
            self._slice("target", "prefill", progress.begun, progress.ended, arguments)

    def _note_verdict(self, verdict: Verdict) -> None:
        if not (extend := self._outstanding.answered(verdict)):
            return
        self._judged[verdict.request] = extend
        end, block = extend.start + len(extend.tokens), len(extend.judged)
        for i, made in enumerate(verdict.block):
            self._guessed[verdict.request][extend.verify_from + i] = made.begun
            self._note_guess(verdict.request, extend.verify_from + i, made)
        arguments = {
            "request": verdict.request,
            "position": extend.verify_from,
            "rows": block + 1,
            "block": block,
            "accepted": verdict.accepted,
            "fed": len(extend.tokens) - verdict.reused,
        }
        self._slice("target", "verify", verdict.begun, verdict.ended, arguments)
        if block:
            begun = self._guessed[verdict.request].get(end - 1, verdict.begun)
            self._arrow("s", "draft", begun, extend.extend_id)
            self._arrow("t", "target", verdict.begun, extend.extend_id)

    def _note_commit(self, tokens: Tokens, now: float) -> None:
        name = "rollback" if tokens.contradicts else "commit"
        arguments = {
            "request": tokens.request,
            "position": tokens.start,
            "tokens": len(tokens.tokens),
            "text": self._text(tokens.tokens),
            "last": tokens.origins[-1] if tokens.origins else "",
        }
        self._slice("coordinator", name, now, now + _INSTANT_US * 1e-6, arguments)
        extend, guessed = self._judged.get(tokens.request), self._guessed[tokens.request]
        if extend and extend.judged:
            self._arrow("f", "coordinator", now, extend.extend_id)
        for position in [at for at in guessed if at < tokens.start + len(tokens.tokens)]:
            del guessed[position]

    def _text(self, tokens: Sequence[int]) -> str:
        known = self._token_bytes
        return b"".join(known[t] for t in tokens if t < len(known)).decode(errors="replace")

    # -- the events of the format

    def _slice(
        self, row: Row, name: str, begun: float, ended: float, arguments: dict[str, Any]
    ) -> None:
        self._add(row, name, "X", begun, {"dur": _microseconds(ended - begun), "args": arguments})

    def _mark(self, row: Row, name: str, moment: float, arguments: dict[str, Any]) -> None:
        self._add(row, name, "i", moment, {"s": "t", "args": arguments})

    def _arrow(self, part: str, row: Row, moment: float, number: int) -> None:
        """A part of an arrow: s begins it, t leads on, f ends it; each is bound to a slice."""
        more = {"id": number, "cat": "block"} | ({"bp": "e"} if part == "f" else {})
        self._add(row, "block", part, moment, more)

    def _describe(self, name: str, number: int, arguments: dict[str, Any]) -> None:
        """Tell how the process, or a row of it, is to be shown."""
        event = {"name": name, "ph": "M", "pid": _PROCESS, "tid": number, "args": arguments}
        self._lines.append(json.dumps(event) + ",")

    def _add(self, row: Row, name: str, phase: str, moment: float, more: _Event) -> None:
        if self._origin is None:
            self._origin = moment
        event: _Event = {"name": name, "ph": phase, "ts": _microseconds(moment - self._origin)}
        event |= {"pid": _PROCESS, "tid": ROWS.index(row)} | more
        self._lines.append(json.dumps(event) + ",")


def _microseconds(seconds: float) -> float:
    return round(seconds * 1e6, 1)


def events_of(lines: Iterator[str]) -> Iterator[_Event]:
    """The events in the lines of a trace, whether or not it has an end.

    Raises:
        ValueError: at a line that is none of a trace.
    """
    for text in lines:
        line = text.strip().rstrip(",")
        if line in {"", "[", "]"}:
            continue
        event = json.loads(line)
        if not isinstance(event, dict):
            raise ValueError("an event is an object")
        yield event
