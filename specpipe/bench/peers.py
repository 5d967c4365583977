"""Other programs that run the same weights, to be measured beside the pipeline, on its cores.

Each has a process of its own (peer_process.py), so that its threads and memory meet nobody else's.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from specpipe.bench.measurement import Figures, answer_hash
from specpipe.bench.scenarios import Contender
from specpipe.errors import SpecpipeError, UserError
from specpipe.models.store import ModelFiles
from specpipe.pair import ModelPair
from specpipe.sampling import SamplingParams

WAYS = {
    "transformers": {
        "transformers": "plain",
        "transformers, assisted": "assisted",
        "transformers, prompt look-up": "lookup",
    },
    "llama.cpp": {"llama.cpp": "plain", "llama.cpp, prompt look-up": "lookup"},
}
"""Each peer, and the ways in which it answers."""

_MODULES = {"transformers": "transformers", "llama.cpp": "llama_cpp"}
_EXTRAS = {"transformers": "transformers", "llama.cpp": "peers"}


def check_peers(names: Sequence[str], pair: ModelPair) -> None:
    """Refuse peers that can't take part.

    Raises:
        UserError: for a peer that is unknown, not installed, or can't read the models.
    """
    for name in names:
        if name not in WAYS:
            raise UserError(f"no peer is called {name!r}: there are {', '.join(WAYS)}")
        if importlib.util.find_spec(_MODULES[name]) is None:
            raise UserError(
                f"the peer {name} is not installed: run `pip install 'specpipe[{_EXTRAS[name]}]'`"
            )
        if name == "llama.cpp" and pair.target.weights.is_dir():
            raise UserError(
                f"llama.cpp reads .gguf files, and {pair.target.name} is a folder: leave it out"
            )


def peer_contenders(names: Sequence[str], pair: ModelPair) -> list[Contender]:
    """The contenders that peers are; without a draft model none assists."""
    return [
        Contender(told, told, name, way)
        for name in names
        for told, way in WAYS[name].items()
        if way != "assisted" or pair.draft
    ]


class PeerAnswerer:
    """An Answerer (see runner.py) that is a peer's process."""

    def __init__(self, name: str, process: "subprocess.Popen[str]", ends: Sequence[int]) -> None:
        self._name, self._process, self._ends = name, process, ends

    def answer(self, way: str, prompt: Sequence[int], params: SamplingParams) -> Figures:
        """See Answerer.

        Raises:
            SpecpipeError: if the peer fails.
        """
        ends = () if params.ignore_eos else self._ends
        asked = {
            **{name: getattr(params, name) for name in ("max_tokens", "temperature", "seed")},
            **{name: getattr(params, name) for name in ("top_k", "top_p")},
            "stop_token_ids": sorted({*ends, *params.stop_token_ids}),
        }
        assert self._process.stdin is not None
        request = {"way": way, "prompt": list(prompt), "asked": asked}
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        found = self.hear()
        written, seconds, first = found["token_ids"], found["seconds"], found["first_token_s"]
        later = len(written) - 1
        return Figures(
            answer=answer_hash(written),
            finish_reason="stop" if written and written[-1] in ends else "length",
            prompt_tokens=len(prompt),
            tokens=len(written),
            seconds=seconds,
            first_token_s=first,
            per_token_s=(seconds - first) / later if first and later else None,
        )

    def hear(self) -> dict[str, Any]:
        """The next line that the process says.

        Raises:
            SpecpipeError: if it says what went wrong, or ends.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found: dict[str, Any] = json.loads(line) if line else {"error": "its process ended"}
        if "error" in found:
            raise SpecpipeError(f"the peer {self._name} failed: {found['error']}")
        return found


@contextmanager
def start_peer(name: str, pair: ModelPair, cores: Sequence[int]) -> Iterator[PeerAnswerer]:
    """Start a peer and wait until its models are loaded; ended with the context.

    Raises:
        SpecpipeError: if it can't load them.
    """
    settings = {
        "peer": name,
        "target": _path(pair.target),
        "draft": _path(pair.draft) if pair.draft else None,
        "cores": list(cores),
        "context": pair.context_length,
    }
    process = subprocess.Popen(  # noqa: S603 (our own module)
        [sys.executable, "-P", "-m", "specpipe.bench.peer_process", json.dumps(settings)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # pages of advice; errors come as a line
        text=True,
        start_new_session=True,  # Ctrl-C is for us
    )
    try:
        answerer = PeerAnswerer(name, process, pair.tokenizer.stop_token_ids)
        answerer.hear()
        yield answerer
    finally:
        process.kill()  # it has nothing to save, and may be in the middle of an answer
        with suppress(BrokenPipeError):
            process.communicate()


def _path(files: ModelFiles) -> str:
    return str(files.weights.resolve())
