"""Rows and completions for tests of what stands around a pipeline."""

import io
import json

from specpipe.batch.rows import read_rows
from specpipe.completion import Completion
from specpipe.metrics import RequestMetrics, SourceCounts
from specpipe.sampling import SamplingParams

PARAMS = SamplingParams(seed=0)


def rows_of(*said, run="run"):
    """Rows of dictionaries."""
    lines = "".join(json.dumps(row) + "\n" for row in said)
    return read_rows(io.BytesIO(lines.encode()), PARAMS, run)


def completion(text, params, reason="stop", cause=""):
    """What a pipeline might answer."""
    metrics = RequestMetrics(1.0, 1.5, 3.0, prompt_tokens=4, completion_tokens=8, target_forwards=4)
    metrics.model = SourceCounts(drafted=9, sent=6, accepted=3)
    return Completion(text, list(map(ord, text)), reason, cause, params.seed, 0, [], None, metrics)
