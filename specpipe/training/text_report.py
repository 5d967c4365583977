"""What came of training from text, on one page with a curve, and for other programs."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specpipe.training.optimising import Curve
from specpipe.training.report import draw_loss


@dataclass(frozen=True, slots=True)
class TextFindings:
    """All there is to tell.

    Attributes:
        name: of the model.
        recipe: all settings, by name.
        parameters: numbers that were trained.
        vocabulary: tokens that there are.
        text_tokens: of the text to learn from.
        held_out_tokens: of the rest.
        curve: of the training.
    """

    name: str
    recipe: dict[str, Any]
    parameters: int
    vocabulary: int
    text_tokens: int
    held_out_tokens: int
    curve: Curve

    def figures(self) -> dict[str, Any]:
        """All of it for JSON."""
        return asdict(self)

    @property
    def verdict(self) -> str:
        """How well it guesses what it never saw, in a sentence."""
        step, loss = self.curve.held_out[-1]
        best = min(self.curve.held_out, key=lambda entry: entry[1])
        over = "" if best[0] == step else f"; it was {best[1]:.3f} after {best[0]:,}"
        return (
            f"Loss {loss:.3f} on what was held out, after {step:,} steps{over}: at each token as "
            f"unsure as between {math.exp(min(loss, 100)):.1f} equally likely ones of "
            f"{self.vocabulary:,}."
        )


def write_text_report(folder: Path, findings: TextFindings) -> None:
    """Write report.md and curve.png, which the page shows."""
    curve = findings.curve
    recipe = "\n".join(f"- {name}: {value}" for name, value in findings.recipe.items())
    read = curve.tokens / findings.text_tokens
    parts = [
        f"# {findings.name}: trained from text",
        findings.verdict,
        "![loss by step](curve.png)",
        f"{findings.parameters / 1e6:.1f} million parameters saw {curve.tokens:,} tokens in "
        f"{curve.seconds / 60:.1f} minutes: a text of {findings.text_tokens:,} tokens, {read:.1f} "
        f"times. {findings.held_out_tokens:,} tokens were held out.",
        "## Settings",
        recipe,
    ]
    (folder / "report.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    _draw(curve, folder / "curve.png")


def _draw(curve: Curve, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow to load)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    draw_loss(figure.subplots(), curve)
    figure.savefig(path, format="png", dpi=110)
