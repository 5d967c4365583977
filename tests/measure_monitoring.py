"""What being watched costs: part of `make measure`.

A real pipeline at work, in whose hub the time is taken that statistics and reports need, and in
whose program that of handing them to Ray. Processor time of the thread, so that other programs
don't count. Prints both as shares of the time that passed: what is taken from the target's core,
while that idles or not, and from the program.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from specpipe.actors import Config, Pipeline, SamplingParams
from specpipe.actors.monitoring import Publisher
from tests.prompts import prompts

TIMED = """
import json, sys, time
from specpipe import hub
from specpipe.reporting import Reporting

spent = [0.0, 0]

def timed(function):
    def call(*arguments, **more):
        begun = time.thread_time()
        result = function(*arguments, **more)
        spent[0] += time.thread_time() - begun
        spent[1] += 1
        return result
    return call

Reporting.note, Reporting.tell = timed(Reporting.note), timed(Reporting.tell)
hub.main()
with open({file!r}, "w") as file:
    json.dump(spent, file)
"""
"""A hub that notes what the two calls of its loop took; what timing itself takes is included."""


def main() -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "spent.json"
        started = subprocess.Popen

        def start(command: list[str], *rest: Any, **more: Any) -> "subprocess.Popen[bytes]":
            if "specpipe.hub" in command:
                command = [*command[:2], "-c", TIMED.format(file=str(file)), command[-1]]
            return started(command, *rest, **more)

        subprocess.Popen = start  # type: ignore[assignment,misc]
        published = 0.0
        publish = Publisher.publish

        def publish_timed(self: Publisher, figures: Any) -> None:
            nonlocal published
            begun = time.thread_time()
            publish(self, figures)
            published += time.thread_time() - begun

        Publisher.publish = publish_timed
        config = Config().override(pipeline={"policy": "take_all"})  # the busiest one
        with Pipeline.launch(config) as pipeline:
            pipeline.generate(prompts(1), SamplingParams(max_tokens=8))
            begun = time.monotonic()
            answers = pipeline.generate(prompts(4), SamplingParams(max_tokens=128, ignore_eos=True))
            seconds = time.monotonic() - begun
        spent, calls = json.loads(file.read_text())
    tokens = sum(len(answer.token_ids) for answer in answers)
    print(f"{tokens} tokens in {seconds:.1f} s, {calls} calls in the hub", file=sys.stderr)
    print(f"hub: {spent / seconds:.2%} of a core, program: {published / seconds:.2%}")


if __name__ == "__main__":
    main()
