"""A peer's process: loads its models, and answers the prompts that come on standard input.

One JSON object a line, both ways; see peers.py, which starts it. The only argument is JSON too:
`peer`, `target` and `draft` (paths; draft may be null), `cores`, `context`.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from specpipe.devices import pin_process
from specpipe.machine import usable_cores

Answer = Callable[[str, Sequence[int], dict[str, Any]], dict[str, Any]]
"""From a way, a prompt and what is asked to `token_ids`, `seconds` and `first_token_s`."""


def transformers(settings: dict[str, Any], threads: int) -> Answer:
    """Answers with transformers; the draft assists only where it is asked to."""
    import torch  # noqa: PLC0415 (after pinning)

    from specpipe.bench.peer_models import (  # noqa: PLC0415
        generate_transformers,
        load_assistant,
        load_transformers,
    )

    torch.set_num_threads(threads)
    model = load_transformers(Path(settings["target"]))
    draft = load_assistant(Path(settings["draft"]), model) if settings["draft"] else None

    def answer(way: str, prompt: Sequence[int], asked: dict[str, Any]) -> dict[str, Any]:
        begun = time.perf_counter()
        written = generate_transformers(model, draft, way, prompt, asked)
        seconds = time.perf_counter() - begun
        return {"token_ids": written, "seconds": seconds, "first_token_s": None}

    return answer


def llama_cpp(settings: dict[str, Any], threads: int) -> Answer:
    """Answers with llama.cpp; a model for each way, whose weights are one file in memory."""
    from specpipe.bench.peer_models import load_llama_cpp  # noqa: PLC0415

    path, context = Path(settings["target"]), settings["context"]
    models = {
        way: load_llama_cpp(path, context=context, threads=threads, lookup=way == "lookup")
        for way in ("plain", "lookup")
    }

    def answer(way: str, prompt: Sequence[int], asked: dict[str, Any]) -> dict[str, Any]:
        model, written = models[way], list[int]()
        model.reset()  # else it goes on from what it has in common with the last prompt
        if asked["temperature"]:
            model.set_seed(asked["seed"])
        law = {"temp": asked["temperature"], "top_k": asked["top_k"], "top_p": asked["top_p"]}
        first, begun = None, time.perf_counter()
        for token in model.generate(list(prompt), **law, repeat_penalty=1.0, min_p=0.0):
            first = first or time.perf_counter() - begun
            written.append(token)
            if token in asked["stop_token_ids"] or len(written) >= asked["max_tokens"]:
                break
        seconds = time.perf_counter() - begun
        return {"token_ids": written, "seconds": seconds, "first_token_s": first}

    return answer


_PEERS = {"transformers": transformers, "llama.cpp": llama_cpp}


def main() -> None:
    """Serve until standard input ends; an error is one line, and the end."""
    settings: dict[str, Any] = json.loads(sys.argv[1])
    if settings["cores"]:
        pin_process(settings["cores"])
    try:
        answer = _PEERS[settings["peer"]](settings, len(usable_cores()))
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            found = answer(request["way"], request["prompt"], request["asked"])
            print(json.dumps(found), flush=True)
    except Exception as error:  # whatever these libraries raise
        cause = " ".join(str(error).split()) or type(error).__name__
        print(json.dumps({"error": f"{cause:.300}"}), flush=True)


if __name__ == "__main__":
    main()
