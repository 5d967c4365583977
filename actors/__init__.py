"""Ray: places the parts on devices, supervises them, and embeds the pipeline."""

from specpipe.actors.pipeline import Pipeline, Stream
from specpipe.completion import Completion
from specpipe.config import Config
from specpipe.sampling import SamplingParams

__all__ = ["Completion", "Config", "Pipeline", "SamplingParams", "Stream"]
