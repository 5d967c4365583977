"""Log lines that tell of a request by its number, whichever part it is in: text, or JSON.

Program, hub and workers are processes of their own. Each writes to its own standard error; a
worker's lines, which Ray keeps in a file of the actor's, are sent to the hub as well, so that one
place tells the whole story.
"""

import json
import logging
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from specpipe.errors import UserError
from specpipe.worker_messages import MAX_TEXT, Role, Said

if TYPE_CHECKING:
    from specpipe.channel import Channel

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)

_ROOT = logging.getLogger("specpipe")
_WORKERS = "specpipe.workers."


@dataclass(frozen=True, slots=True)
class LogConfig:
    """What is logged, and how.

    Attributes:
        level: the least that is worth a line, one of LEVELS: `info` tells of each request where it
            comes, is read and ends; `debug` of each block and verdict.
        format: one of FORMATS.

    Raises:
        UserError: for another level or format.
    """

    level: LogLevel = "warning"
    format: LogFormat = "text"

    def __post_init__(self) -> None:
        for name, known in (("level", LEVELS), ("format", FORMATS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} is {getattr(self, name)!r}: choose one of {', '.join(known)}"
                )


def set_up(config: LogConfig, part: str, pipeline: str = "") -> None:
    """Write what this process logs to standard error.

    Args:
        config: what, and how.
        part: what this process is: `program`, `coordinator`, or a worker's role.
        pipeline: which one it belongs to.
    """
    handler = _ToStandardError()
    handler.setFormatter((_Json if config.format == "json" else _Text)(part, pipeline))
    _ROOT.handlers = [handler]
    _ROOT.setLevel(config.level.upper())
    _ROOT.propagate = False


class _ToStandardError(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


class _Formatter(logging.Formatter):
    def __init__(self, part: str, pipeline: str) -> None:
        super().__init__()
        self._part, self._pipeline = part, pipeline

    def _part_of(self, record: logging.LogRecord) -> str:
        """Whose line it is: the hub writes those of the workers, and two may share a process."""
        name = record.name
        return name.removeprefix(_WORKERS) if name.startswith(_WORKERS) else self._part


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        request = getattr(record, "request", 0)
        about = f" request {request}:" if request else ""
        head = f"{moment}.{int(record.msecs):03} {record.levelname.lower()}"
        line = f"{head} {self._part_of(record)}:{about} {record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "pipeline": self._pipeline,
            "part": self._part_of(record),
            "text": record.getMessage(),
        }
        if request := getattr(record, "request", 0):
            line["request"] = request
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _ToHub(logging.Handler):
    def __init__(self, role: Role, channel: "Channel") -> None:
        super().__init__()
        self._role, self._channel = role, channel

    def emit(self, record: logging.LogRecord) -> None:
        request = getattr(record, "request", 0)
        text = record.getMessage()[:MAX_TEXT]
        self._channel.send(Said(self._role, record.levelno, text, request))


def log_of(role: Role) -> logging.Logger:
    """A worker's own log; its thread alone writes to it."""
    return logging.getLogger(_WORKERS + role)


def send_to_hub(role: Role, channel: "Channel") -> None:
    """Send what a worker logs to the hub as well; its thread owns the channel."""
    log_of(role).handlers = [_ToHub(role, channel)]


def write_said(said: Said) -> None:
    """In the hub: write a worker's line."""
    log_of(said.role).log(said.level, "%s", said.text, extra={"request": said.request})
