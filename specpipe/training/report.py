"""What came of a distillation, on one page with curves, and for other programs."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from specpipe.bench.report import markdown
from specpipe.simulated_workers import Hardware
from specpipe.training.evaluation import SOURCES, Judgement
from specpipe.training.optimising import Curve
from specpipe.training.worth import Expected

_WORTH_USING = 1.05
"""Below this, a pair is not faster than its target by more than a machine's moods."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All there is to tell.

    Attributes:
        target, draft: names.
        recipe: how the draft was made.
        conversations: how many the target wrote.
        written: tokens of these that have its law.
        coverage: share of such tokens, of conversations not learned from, that the head covers.
        parameters: numbers that were trained.
        curve: of the training.
        judgements: by temperature.
        times: of a step and of the target's passes, one thread for the draft.
        expected: by temperature and drafter.
    """

    target: str
    draft: str
    recipe: dict[str, Any]
    conversations: int
    written: int
    coverage: float
    parameters: int
    curve: Curve
    judgements: dict[float, Judgement]
    times: Hardware
    expected: dict[float, dict[str, Expected]]

    def figures(self) -> dict[str, Any]:
        """All of it for JSON, but for each single guess."""
        values = asdict(self)
        for judged in values["judgements"].values():
            del judged["guesses"]
        return values

    @property
    def verdict(self) -> str:
        """Whether the draft is worth using, in a sentence."""
        best = self.expected[0.0]["hybrid"].pipelined
        alone = self.expected[0.0]["ngram"].pipelined
        if best < _WORTH_USING:
            return f"Not worth using: {best:.2f} times the target alone is expected of it."
        if best < alone * _WORTH_USING:
            return (
                f"Hardly worth using: {best:.2f} times the target alone is expected with it, and "
                f"{alone:.2f} times by look-ups without any model (`--draft none --drafter ngram`)."
            )
        return (
            f"Worth using: {best:.2f} times the target alone is expected with look-ups beside it, "
            f"{alone:.2f} times by look-ups without any model."
        )


def write_report(folder: Path, findings: Findings) -> None:
    """Write report.md, evaluation.json and the pictures that the page shows."""
    (folder / "report.md").write_text(_page(findings), encoding="utf-8")
    figures = json.dumps(findings.figures(), indent=1) + "\n"
    (folder / "evaluation.json").write_text(figures, encoding="utf-8")
    _draw(findings, folder / "curves.png")


def _page(findings: Findings) -> str:
    recipe = "\n".join(f"- {name}: {value}" for name, value in findings.recipe.items())
    parts = [
        f"# {findings.draft}: a draft for {findings.target}",
        findings.verdict,
        "![loss, acceptance by block, calibration](curves.png)",
        "## How it was made",
        recipe,
        f"{findings.target} wrote {findings.conversations} conversations, {findings.written:,} "
        f"tokens with its law. The draft has {findings.parameters / 1e6:.1f} million parameters of "
        f"its own and saw {findings.curve.tokens:,} tokens in {findings.curve.seconds / 60:.0f} "
        f"minutes. Its head covers {findings.coverage:.1%} of what the target writes. Where the "
        "curve of what is learned drops, the chance of being accepted takes the place of the "
        "cross-entropy; that of what is held out is the cross-entropy throughout.",
        *(_judged(each, temperature) for temperature, each in findings.judgements.items()),
        "## What to expect",
        _expected(findings),
    ]
    return "\n\n".join(parts) + "\n"


def _judged(judged: Judgement, temperature: float) -> str:
    rows = [[category, *_shares(found)] for category, found in sorted(judged.by_category.items())]
    rows.append(["all", *_shares(judged.acceptance)])
    sizes = list(judged.lengths["hybrid"])
    lengths = [
        [source, *(f"{judged.lengths[source][size]:.2f}" for size in sizes)] for source in SOURCES
    ]
    rejection = ""
    if judged.rejection is not None:
        rejection = (
            f"\n\nBy the rejection rule the model's own guesses would be accepted with chance "
            f"{judged.rejection:.3f}."
        )
    return (
        f"## Temperature {temperature:g}: {judged.tokens:,} tokens of answers that it never saw\n\n"
        "Chance that a guess is right, those before it being right:\n\n"
        f"{markdown(['', *SOURCES], rows)}\n\n"
        "Tokens that a pass of the target commits, by the guesses in its block:\n\n"
        f"{markdown(['', *map(str, sizes)], lengths)}{rejection}"
    )


def _expected(findings: Findings) -> str:
    times = findings.times
    one = times.pass_seconds(1)
    passes = ", ".join(f"{times.pass_seconds(m) * 1e3:.1f} ms for {m}" for m in (1, 4, 8))
    rows = [
        [f"{temperature:g}", name, f"{each.pipelined:.2f}", f"{each.serial:.2f} ({each.length})"]
        for temperature, found in findings.expected.items()
        for name, each in found.items()
    ]
    return (
        f"A guess takes {times.step * 1e3:.2f} ms on one core, a pass of the target on the others "
        f"{passes} rows: {one / times.step:.1f} guesses a pass. Relative to the target alone, on "
        "two devices that do not hinder each other, with these very guesses, simulated:\n\n"
        + markdown(["temperature", "guesses by", "pipelined", "serial (draft length)"], rows)
    )


def _shares(found: dict[str, float]) -> list[str]:
    return [f"{found[source]:.3f}" for source in SOURCES]


def _draw(findings: Findings, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 (slow to load)
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    loss, lengths, calibration = figure.subplots(1, 3)
    draw_loss(loss, findings.curve)
    for source in SOURCES:
        for temperature, judged in findings.judgements.items():
            sizes = judged.lengths[source]
            style = "-" if temperature == 0 else "--"
            label = f"{source}, T = {temperature:g}"
            lengths.plot(list(sizes), list(sizes.values()), style, marker="o", label=label)
    lengths.set(xlabel="guesses in a block", ylabel="tokens by pass", title="committed")
    lengths.legend(fontsize=7)
    for temperature, judged in findings.judgements.items():
        said = [confidence for _, confidence, _ in judged.calibration]
        true = [right for _, _, right in judged.calibration]
        calibration.plot(said, true, marker="o", label=f"T = {temperature:g}")
    calibration.plot([0, 1], [0, 1], color="gray", linewidth=0.8)
    calibration.set(xlabel="the draft's confidence", ylabel="right", title="calibration")
    calibration.legend(fontsize=7)
    figure.savefig(path, format="png", dpi=110)


def draw_loss(axes: Any, curve: Curve) -> None:
    """The loss by step, on what is learned and on what is held out."""
    for name, points in (("learned", curve.train), ("held out", curve.held_out)):
        axes.plot([step for step, _ in points], [loss for _, loss in points], label=name)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title="loss")
    axes.legend(fontsize=7)
