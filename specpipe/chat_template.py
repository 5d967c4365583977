"""Renders a model's chat template, in a process of its own.

A template is a program that came with the weights. jinja2's sandbox keeps it from this program's
objects, but cannot stop it from looping for ever or from doubling a string forty times. So it runs
in another process with bounds on time and memory that the system enforces. To start one takes a
tenth of a second, to ask it a millisecond: it waits a second for more, and is not used again after
a failure.

This module doesn't know tokens; `python -m specpipe.chat_template` is the process's inside.
"""

import atexit
import functools
import json
import math
import os
import resource
import select
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from specpipe.errors import UserError

MAX_CHARACTERS = 4 * 2**20
"""Longest text that a template may render; the longest contexts hold about that much."""

_CPU_SECONDS = 2
_WALL_SECONDS = 60.0
_IDLE_SECONDS = 1.0
_MEMORY_BYTES = 512 * 2**20
_LONGEST_REASON = 200


def render(
    template: str, messages: Sequence[Mapping[str, str]], *, bos_token: str, eos_token: str
) -> str:
    """Render a conversation up to where the assistant's next words go.

    Args:
        template: jinja2 source, in the dialect of transformers.
        messages: each with `role` and `content`, oldest first.
        bos_token: text of the token that begins a sequence, for the template's use.
        eos_token: text of the token that ends one.

    Raises:
        UserError: if the template is broken, refuses the messages, or exceeds its bounds.
    """
    variables = {
        "messages": [dict(message) for message in messages],
        "bos_token": bos_token,
        "eos_token": eos_token,
        "add_generation_prompt": True,
        "tools": None,
        "documents": None,
    }
    answer = _PROCESS.ask({"template": template, "variables": variables})
    if "error" in answer:
        raise UserError(
            f"the model's chat template failed: {answer['error']}; change the messages, or leave "
            "the template out with --raw"
        )
    return answer["text"]


class _Process:
    """The process that renders: there from the first request on, and again after it ended."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew; in a fork, the process belongs to the parent."""
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, str]:
        """Have a template rendered; returns the text, or an error in its place."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            for _ in range(2):
                answer = self._exchange(line)
                if answer.endswith(b"\n"):
                    found: dict[str, str] = json.loads(answer)
                    return found
                status, last_words = self._wait()
                if status:  # else it had waited long enough for more
                    break
        if status < 0:  # by a signal: the system enforces the bound on CPU time in this way
            return {"error": f"it needs more than {_CPU_SECONDS} s or {_MEMORY_BYTES >> 20} MiB"}
        return {"error": f"its process ended with {last_words[:_LONGEST_REASON]!r}"}

    def close(self) -> None:
        """End the process, if it is there."""
        with self._lock:
            if self._running:
                self._running.kill()
                self._wait()

    def _exchange(self, line: bytes) -> bytes:
        """Send a line and receive one, which is cut short if the process ends."""
        if self._running and self._running.poll() is not None:
            self._wait()  # whatever ended it while it waited, it was not this request
        process = self._running = self._running or _start()
        assert process.stdin
        assert process.stdout
        # Whatever holds it up, a process that is killed closes what is read here.
        alarm = threading.Timer(_WALL_SECONDS, process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            return process.stdout.readline()
        except BrokenPipeError:
            return b""
        finally:
            alarm.cancel()

    def _wait(self) -> tuple[int, str]:
        """Wait for the process, which is ending; returns its status and the last line it said."""
        assert self._running
        process, self._running = self._running, None
        _, said = process.communicate()
        return process.returncode, said.decode(errors="replace").strip().rpartition("\n")[2]


_PROCESS = _Process()
atexit.register(_PROCESS.close)
os.register_at_fork(after_in_child=_PROCESS.forget)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-P", "-m", "specpipe.chat_template", str(_IDLE_SECONDS)],
        # What this process can import, the other can, however specpipe came to be here.
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        process_group=0,  # Ctrl-C is meant for the program, which may go on
    )


@functools.cache
def _environment() -> Any:
    """A sandbox with the extensions to jinja2 that transformers gives chat templates."""
    # Imported in the rendering process only.
    from datetime import datetime  # noqa: PLC0415

    from jinja2 import TemplateError, nodes  # noqa: PLC0415
    from jinja2.ext import Extension  # noqa: PLC0415
    from jinja2.parser import Parser  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(Extension):
        """{% generation %} marks the assistant's words for training; here it changes nothing."""

        tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    return _environment().from_string(template)


def _render_bounded(template: str, variables: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in _compiled(template).generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise OverflowError(f"it writes more than {MAX_CHARACTERS} characters")
    return "".join(pieces)


def _answer(request: dict[str, Any]) -> dict[str, str]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime) + _CPU_SECONDS
    # Beyond this bound the system ends the process.
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        return {"text": _render_bounded(request["template"], request["variables"])}
    except MemoryError:
        return {"error": f"it needs more than {_MEMORY_BYTES >> 20} MiB"}
    except Exception as error:  # a template can raise whatever Python can
        reason = " ".join(str(error).split()) or type(error).__name__
        return {"error": reason[:_LONGEST_REASON]}


def _main() -> None:
    """Answer requests on standard input, a line of JSON each, until there are no more."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file helps nobody
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    answer: dict[str, str] = {}
    # A failure may have left anything behind.
    while "error" not in answer and select.select([sys.stdin], [], [], float(sys.argv[1]))[0]:
        line = sys.stdin.buffer.readline()
        if not line:
            return
        answer = _answer(json.loads(line))
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
