"""A pipeline as a stage of a Ray Data job: prompts in one column, answers in another.

Knows rows and columns; Ray Data itself is the caller's.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from specpipe.actors.pipeline import Pipeline
from specpipe.completion import Completion
from specpipe.config import Config
from specpipe.errors import UserError, WorkerError
from specpipe.pair import Prompt
from specpipe.sampling import SamplingParams

Batch = dict[str, Any]
"""Columns by name, each with a value for every row."""


class SpecPipeUDF:
    """Completes each row's prompt, for `Dataset.map_batches`; each replica has a pipeline.

    ```
    dataset.map_batches(SpecPipeUDF, fn_constructor_kwargs={"config": config}, concurrency=2)
    ```

    A replica's models are on its own node unless the configuration says otherwise. All rows of a
    batch are handed in at once, and `max_num_seqs` of them are in work. The rows come back as they
    were, with the columns

    - `output_column`: the answer's text;
    - `token_ids`: its tokens;
    - `finish_reason`: "stop", "length" or "error";
    - `error`: one line for a row that could not be completed, and empty for others: a prompt that
      is too long must not end a job of a million rows.

    The rows of a replica that is lost are done again by Ray.

    Args:
        config: a Config, or nested dictionaries as its TOML has them.
        params: what is asked for each row; the configuration's by default. With a seed the output
            is the same whichever replica writes it.
        prompt_column: has texts, conversations or token ids.
        output_column: is added, or replaced.
        raw: take texts as they are, without the chat template.

    Raises:
        UserError: as Pipeline.launch; for more than one answer a row.
        WorkerError: as Pipeline.launch.
    """

    def __init__(
        self,
        config: Config | Mapping[str, Any] | None = None,
        params: SamplingParams | None = None,
        *,
        prompt_column: str = "prompt",
        output_column: str = "text",
        raw: bool = False,
    ) -> None:
        if not isinstance(config, Config):
            config = Config.from_dict(config or {})
        self._params = params or config.sampling
        if self._params.n != 1:
            raise UserError(f"n is {self._params.n}: a row has one answer; repeat the row instead")
        self._prompts, self._output, self._raw = prompt_column, output_column, raw
        self._pipeline = Pipeline.launch(config)

    def __call__(self, batch: Batch) -> Batch:
        """Complete the prompts of a batch.

        Raises:
            UserError: if it has no such column.
            WorkerError: if the pipeline can't go on, so that no row would have an answer.
        """
        if self._prompts not in batch:
            raise UserError(
                f"there is no column {self._prompts!r}: set prompt_column to one of "
                f"{', '.join(batch)}"
            )
        begun = [self._begin(value) for value in batch[self._prompts]]
        rows = [each if isinstance(each, _Row) else _row(each.result()) for each in begun]
        if not self._pipeline.alive:
            causes = (row.error for row in rows if row.error)
            raise WorkerError(f"this replica's pipeline cannot go on: {next(causes, 'it ended')}")
        texts, token_ids, reasons, errors = zip(*rows, strict=True) if rows else ((),) * 4
        return batch | {
            self._output: _column(texts),
            "token_ids": _column(token_ids),
            "finish_reason": _column(reasons),
            "error": _column(errors),
        }

    def close(self) -> None:
        """End the pipeline; Ray Data does it when a replica is no longer needed."""
        self._pipeline.close()

    def __del__(self) -> None:
        if hasattr(self, "_pipeline"):  # it may not have been launched
            self.close()

    def _begin(self, value: Any) -> "Future[Completion] | _Row":
        """Hand a prompt in; or the row that says why it is none."""
        try:
            return self._pipeline.submit(_prompt(value), self._params, raw=self._raw)
        except UserError as error:
            return _Row("", [], "error", str(error))


class _Row(NamedTuple):
    text: str
    token_ids: list[int]
    finish_reason: str
    error: str


def _row(completion: Completion) -> _Row:
    return _Row(completion.text, completion.token_ids, completion.finish_reason, completion.cause)


def _prompt(value: Any) -> Prompt:
    """A prompt from a cell: Arrow gives lists as arrays.

    Raises:
        UserError: if it is none.
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str | list):
        return value
    raise UserError(f"the prompt is {value!r:.60}: give a text, a conversation or token ids")


def _column(values: Sequence[Any]) -> NDArray[np.object_]:
    """One value a row, lists of unequal length too."""
    column = np.empty(len(values), dtype=object)
    for i, value in enumerate(values):
        column[i] = value
    return column
