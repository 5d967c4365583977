"""`specpipe batch`: answer a file of prompts, row by row into a file of records."""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click
import cloup

from specpipe.batch.records import Records, Tally
from specpipe.batch.rows import Asked, Row, count_rows, key_of_run, open_rows, read_rows
from specpipe.batch.running import Batch
from specpipe.cli import answers
from specpipe.cli.options import asked_options, configure, grouped, option, pipeline_options
from specpipe.cli.progress import Progress
from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.pair import ModelPair

_SEED = 0


@cloup.command()
@cloup.argument("source", metavar="INPUT", type=click.Path(allow_dash=True))
@cloup.argument("destination", metavar="OUTPUT", type=click.Path(allow_dash=True))
@grouped(
    "Rows",
    option("--resume", is_flag=True, help="Go on behind the records that OUTPUT has."),
    option("--raw", is_flag=True, help="Take prompts as they are, without the chat template."),
)
@pipeline_options
@grouped(
    "Models",
    option("--no-draft", is_flag=True, help="Let the target work alone: the reference."),
)
@grouped(
    "Pipeline",
    option(
        "--max-num-seqs",
        type=int,
        help="Most rows in work at once.",
        usual=Config().pipeline.max_num_seqs,
    ),
)
@asked_options(seed=_SEED)
@grouped(
    "Sampling",
    option("--logprobs", type=int, help="Record log-probabilities of so many.", usual="none"),
)
def batch(source: str, destination: str, *, resume: bool, raw: bool, **options: Any) -> None:
    """Answer each line of INPUT with a line of OUTPUT, in the same order; `-` is a pipe.

    A line of INPUT is a JSON object with `prompt` or `messages`, and perhaps an `id` and sampling
    options of its own, by their names in Python: {"prompt": "Hello", "max_tokens": 20}. A line of
    OUTPUT has `index` and `id`, `text`, `token_ids`, `finish_reason`, `seed`, `error` (null, or why
    the row has no answer) and `metrics`. It is written as soon as all before it are.

    After a crash or Ctrl-C the same command with --resume goes on, and OUTPUT becomes what it would
    have been: a row without a seed gets one that comes from --seed and its index alone.

    Example: specpipe batch questions.jsonl answers.jsonl --max-tokens 100 --resume
    """
    config = _seeded(configure(options))
    pair = ModelPair.find(config)
    pair.check(config.sampling)
    with open_rows(source) as file, Records.open(destination, resume=resume) as records:
        total = count_rows(file)
        rows = read_rows(file, config.sampling, key_of_run(config, pair, raw=raw))
        tally = records.take_up(rows) if resume else Tally()
        report = _Report(tally, total, shown=not (destination == "-" and sys.stdout.isatty()))
        if tally.rows != total:
            _answer(config, pair, rows, records, report, raw=raw)
    click.echo(report.summary(), err=True)


def _seeded(config: Config) -> Config:
    """The configuration with a fixed seed, so that a run can be taken up again."""
    sampling = config.sampling
    if sampling.n > 1:
        raise UserError(f"n is {sampling.n}: a row gets one answer; repeat the rows instead")
    return replace(config, sampling=replace(sampling, seed=sampling.seed or _SEED))


def _answer(
    config: Config,
    pair: ModelPair,
    rows: Iterator[Row],
    records: Records,
    report: "_Report",
    *,
    raw: bool,
) -> None:
    """Answer the rows that are left; what was interrupted says how to go on."""
    from specpipe.actors.pipeline import (  # noqa: PLC0415 (Ray, which help must not wait for)
        Pipeline,
    )

    def encode(asked: Asked) -> list[int]:
        pair.check(asked.params)
        return pair.encode(asked.prompt, raw=raw)

    with Pipeline.launch(config, pair) as pipeline:
        answers.say_where(pipeline)
        report.begin()
        batch = Batch(pipeline, encode, records, max_num_seqs=config.pipeline.max_num_seqs)
        try:
            batch.run(rows, report.tally, report)
        except BaseException:
            report.end()
            if records.stays:
                click.echo(f"{report.rows()} so far: go on with --resume", err=True)
            raise
        report.end()


class _Report:
    """Says how far a batch is, and what came of it.

    Args:
        tally: is read.
        total: how many rows there are, if that is known.
        shown: whether progress is shown.
    """

    def __init__(self, tally: Tally, total: int | None, *, shown: bool) -> None:
        self.tally = tally
        self._total, self._shown = total, shown
        self._progress = Progress()
        self._begun = self._ended = 0.0

    def begin(self) -> None:
        """The models are loaded: from now on time counts."""
        self._begun = time.monotonic()
        self()

    def __call__(self) -> None:
        """Tell of another row."""
        self._ended = time.monotonic()
        if self._shown:
            share = None if self._total is None else min(1.0, self.tally.rows / self._total)
            self._progress("answering", share, f"{self.rows()}, {self._rate()}")

    def end(self) -> None:
        """Leave the last line of progress as it stands."""
        self._progress.end()

    def rows(self) -> str:
        """How many rows have a record."""
        tally, of = self.tally, "" if self._total is None else f" of {self._total}"
        return f"{tally.rows}{of} rows, {tally.errors} failed"

    def summary(self) -> str:
        """One line of figures."""
        tally = self.tally
        parts = [f"{self.rows()}, {tally.kept} from before" if tally.kept else self.rows()]
        if tally.tokens:
            parts += [f"{tally.tokens} tokens", self._rate()]
        if tally.sent:
            parts.append(f"acceptance {tally.accepted / tally.sent:.0%}")
        return " | ".join(parts)

    def _rate(self) -> str:
        return f"{self.tally.tokens / max(1e-3, self._ended - self._begun):.1f} tokens/s"
