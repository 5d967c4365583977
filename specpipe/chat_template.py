"""Renders a model's chat template, in a process of its own.

A template is a program that came with the weights. jinja2's sandbox keeps it from this program's
objects, but cannot stop it from looping for ever or from doubling a string forty times. So it runs
in a short-lived process (about 50 ms) with bounds on time and memory that the system enforces.

This module doesn't know tokens; `python -m specpipe.chat_template` is the process's inside.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from specpipe.errors import UserError

MAX_CHARACTERS = 4 * 2**20
"""Longest text that a template may render; the longest contexts hold about that much."""

_CPU_SECONDS = 2
_WALL_SECONDS = 60.0
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
    answer = _ask_process({"template": template, "variables": variables})
    if "error" in answer:
        raise UserError(
            f"the model's chat template failed: {answer['error']}; change the messages, or leave "
            "the template out with --raw"
        )
    return answer["text"]


def _ask_process(request: dict[str, Any]) -> dict[str, str]:
    """Have another process render, and return its answer, or an error in its place."""
    too_much = {"error": f"it needs more than {_CPU_SECONDS} s or {_MEMORY_BYTES >> 20} MiB"}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "specpipe.chat_template"],
            input=json.dumps(request).encode(),
            # What this process can import, the other can, however specpipe came to be here.
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            capture_output=True,
            timeout=_WALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return too_much
    if done.returncode < 0:  # by a signal: the system enforces the bound on CPU time in this way
        return too_much
    if done.returncode:
        last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return {"error": f"its process ended with {last_line[:_LONGEST_REASON]!r}"}
    answer: dict[str, str] = json.loads(done.stdout)
    return answer


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


def _render_bounded(template: str, variables: dict[str, Any]) -> str:
    pieces, length = [], 0
    for piece in _environment().from_string(template).generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise OverflowError(f"it writes more than {MAX_CHARACTERS} characters")
    return "".join(pieces)


def _main() -> None:
    """Answer one request on standard input with one JSON object on standard output."""
    import resource  # noqa: PLC0415

    request = json.load(sys.stdin)
    # Beyond the soft bound of CPU time the system kills the process; a core file helps nobody.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    try:
        answer = {"text": _render_bounded(request["template"], request["variables"])}
    except MemoryError:
        answer = {"error": f"it needs more than {_MEMORY_BYTES >> 20} MiB"}
    except Exception as error:  # a template can raise whatever Python can
        reason = " ".join(str(error).split()) or type(error).__name__
        answer = {"error": reason[:_LONGEST_REASON]}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    _main()
