"""Prompts for tests and measurements: our own few, or a file of the user's."""

import json
import os
from pathlib import Path

OWN = (
    "Explain in a few sentences why the sky is blue.",
    "Write a limerick about a cat that learned to swim.",
    "Translate into German: The train to Hamburg leaves at 9:45 from platform 3.",
    "A shop sells pens at 3 for 2 euros. How much do 18 pens cost? Think step by step.",
    "def fibonacci(n):\n    # Return the n-th Fibonacci number.\n",
    "Summarize: Bees fly from flower to flower. Pollen sticks to their legs. When they land on "
    "the next flower, some of it falls off, and the flower can make seeds.",
    "List five things to take on a hike, each with a reason.",
    "Who wrote Faust, and what is it about?",
    "Repeat these words three times: lemon, 东京, naïve, 🙂, Straße.",
    "Write a short letter to a landlord about a broken heating.",
)


def prompts(count: int) -> list[str]:
    """As many prompts from $SPECPIPE_PROMPTS (JSON lines with `prompt` or `turns`), or of ours.

    Taken evenly from the whole file, so that all of its categories are met.
    """
    file = os.environ.get("SPECPIPE_PROMPTS")
    if not file:
        return [OWN[i % len(OWN)] for i in range(min(count, len(OWN)))]
    rows = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
    texts = [row["prompt"] if "prompt" in row else row["turns"][0] for row in rows]
    return texts[:: max(1, len(texts) // count)][:count]
