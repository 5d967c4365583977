"""Ray: places the parts on devices, supervises them, and embeds the pipeline."""

from specpipe.actors.pipeline import Pipeline
from specpipe.actors.stream import AsyncStream, Stream
from specpipe.completion import Completion
from specpipe.config import Config
from specpipe.sampling import SamplingParams

__all__ = ["AsyncStream", "Completion", "Config", "Pipeline", "SamplingParams", "Stream"]
