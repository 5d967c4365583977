"""A text and settings that a model is trained by in a second or two."""

from pathlib import Path
from typing import Any

from specpipe.training.from_text import TextTraining
from specpipe.training.text_report import TextFindings
from specpipe.training.train_config import TrainConfig

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "configs" / "training"

SETTINGS: dict[str, dict[str, Any]] = {
    # A text that does not change with the project, so that losses don't either.
    "text": {"train": [str(ROOT / "LICENSE")], "held_out": 0.1},
    "tokenizer": {"vocab_size": 300},
    "model": {"layers": 2, "heads": 4, "width": 32, "context_length": 64},
    "training": {
        "steps": 30,
        "sequences": 4,
        "learning_rate": 1e-2,
        "warmup": 3,
        "look_every": 10,
        "device": "cpu",
    },
}


def settings(**changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """These, with other values in some tables; one of None is left out."""
    changed = {name: table | changes.get(name, {}) for name, table in SETTINGS.items()}
    return {
        table: {name: value for name, value in values.items() if value is not None}
        for table, values in changed.items()
    }


def training(folder: Path, told=lambda stage, share, line: None, **changes: Any) -> TextTraining:
    """Begin, or go on, with changes to tables of the settings."""
    config = TrainConfig.from_dict(settings(**changes))
    return TextTraining(config, folder, threads=1, told=told)


def train(folder: Path, **changes: Any) -> TextFindings:
    """All of it."""
    return training(folder, **changes).run()
