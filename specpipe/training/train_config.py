"""What a model is trained by from text, as a TOML file says it: one frozen, validated tree.

configs/training shows it. This module knows which values make sense by themselves, not which files
and GPUs there are.
"""

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from specpipe.devices import parse_device
from specpipe.errors import UserError
from specpipe.models.shape import DecoderConfig
from specpipe.toml_file import read_toml, replaced, unknown

DTYPES = ("auto", "float32", "bfloat16")
LEAST_VOCABULARY = 257
"""Tokens: one for each byte, and the one that ends a text."""

_MOST_VOCABULARY = 1 << 18  # a larger one's file would not be read
_MANY = 1 << 40  # of what is only counted
_FFN_GRAIN = 64


def _within(name: str, value: float | None, least: float, most: float) -> None:
    # A NaN is within nothing.
    if value is not None and not least <= value <= most:
        raise UserError(f"{name} is {value}: it must be {least:,} to {most:,}")


@dataclass(frozen=True, slots=True)
class TextConfig:
    """What is read.

    Attributes:
        train: files of UTF-8 text, or patterns such as "data/**/*.txt", seen from the working
            directory. A file is one text, or several with the end token's text between them.
        validation: the same for what is only looked at; none: the end of `train` is held out.
        held_out: that share of it.

    Raises:
        UserError: for a value out of range.
    """

    train: Sequence[str] = ()
    validation: Sequence[str] = ()
    held_out: float = 0.02

    def __post_init__(self) -> None:
        _within("held_out", self.held_out, 0.0001, 0.5)


@dataclass(frozen=True, slots=True)
class TokenizerConfig:
    """Where the vocabulary comes from: one of `path` and `vocab_size`.

    Attributes:
        path: a tokenizer.json, taken as it is, with what lies beside it.
        vocab_size: tokens of a byte-level BPE that is made of the text.
        end: text of the token that ends a text; None: what the files beside `path` name, and
            <|endoftext|> in a new vocabulary.

    Raises:
        UserError: for both, or a value out of range.
    """

    path: str | None = None
    vocab_size: int | None = None
    end: str | None = None

    def __post_init__(self) -> None:
        if self.path is not None and self.vocab_size is not None:
            raise UserError("path and vocab_size exclude each other: leave one out")
        if self.path is not None and Path(self.path).name != "tokenizer.json":
            raise UserError(f"path is {self.path!r:.80}: give that of a tokenizer.json")
        if self.vocab_size is not None and not (
            LEAST_VOCABULARY <= self.vocab_size <= _MOST_VOCABULARY
        ):
            raise UserError(
                f"vocab_size is {self.vocab_size}: it must be {LEAST_VOCABULARY} (each byte, and "
                f"the end) to {_MOST_VOCABULARY:,}"
            )
        if self.end == "":
            raise UserError("end is '': give the text of a token, or leave it out")


@dataclass(frozen=True, slots=True)
class ShapeConfig:
    """The decoder; what `DecoderConfig` calls by the same names.

    Attributes:
        layers, heads, width, context_length, rope_base, norm_eps, tied: as there.
        kv_heads: None: a quarter of `heads`.
        ffn_width: None: 8/3 of `width`, in steps of 64.

    Raises:
        UserError: for a value out of range, or heads that can't be shared out or rotated.
    """

    layers: int = 2
    heads: int = 4
    kv_heads: int | None = None
    width: int = 256
    ffn_width: int | None = None
    context_length: int = 1024
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    tied: bool = True

    def __post_init__(self) -> None:
        for name, most in (
            ("layers", 1024),
            ("heads", 1024),
            ("kv_heads", 1024),
            ("width", 1 << 16),
            ("ffn_width", 1 << 18),
        ):
            _within(name, getattr(self, name), 1, most)
        _within("context_length", self.context_length, 2, 1 << 20)
        _within("rope_base", self.rope_base, 1, 1e12)
        _within("norm_eps", self.norm_eps, 1e-12, 0.1)
        if self.width % (2 * self.heads):
            raise UserError(
                f"width is {self.width} and heads is {self.heads}: a head must have a whole, even "
                "number of elements"
            )
        if self.heads % self.shared_heads:
            raise UserError(
                f"heads is {self.heads} and kv_heads is {self.shared_heads}: each key head must "
                "serve equally many"
            )

    @property
    def shared_heads(self) -> int:
        """Key and value heads."""
        return max(1, self.heads // 4) if self.kv_heads is None else self.kv_heads

    def decoder(self, vocab_size: int) -> DecoderConfig:
        """The shape with a vocabulary, arranged as Hugging Face has it."""
        usual = max(1, round(self.width * 8 / 3 / _FFN_GRAIN)) * _FFN_GRAIN
        return DecoderConfig(
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.shared_heads,
            head_dim=self.width // self.heads,
            width=self.width,
            ffn_width=self.ffn_width or usual,
            vocab_size=vocab_size,
            output_size=vocab_size,
            context_length=self.context_length,
            rope_base=self.rope_base,
            norm_eps=self.norm_eps,
            rotary_halves=True,
            tied=self.tied,
        )


@dataclass(frozen=True, slots=True)
class LearningConfig:
    """How it learns.

    Attributes:
        steps: of the optimizer.
        sequences: of `context_length` tokens in a micro-batch.
        accumulate: micro-batches in a step.
        learning_rate: the highest; it falls as a cosine does.
        lowest: what is left of it at the end, as a share.
        warmup: steps in which it rises.
        weight_decay: of matrices.
        dropout: share of what each layer adds that is left out.
        clip: longest gradient.
        look_every: steps between looks at what is held out.
        seed: of all that is drawn.
        device: "auto" (a GPU if there is one), "cpu" or "cuda:0".
        dtype: of the arithmetic: "float32"; "bfloat16" on GPUs, with weights in float32; "auto".

    Raises:
        UserError: for a value out of range.
    """

    steps: int = 1000
    sequences: int = 8
    accumulate: int = 1
    learning_rate: float = 6e-4
    lowest: float = 0.1
    warmup: int = 100
    weight_decay: float = 0.1
    dropout: float = 0.0
    clip: float = 1.0
    look_every: int = 200
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "sequences", "accumulate", "look_every"):
            _within(name, getattr(self, name), 1, _MANY)
        _within("warmup", self.warmup, 0, _MANY)
        _within("learning_rate", self.learning_rate, 1e-8, 1)
        _within("lowest", self.lowest, 0, 1)
        _within("weight_decay", self.weight_decay, 0, 1)
        _within("dropout", self.dropout, 0, 0.9)
        _within("clip", self.clip, 1e-4, 1e4)
        _within("seed", self.seed, 0, 2**31)
        if parse_device(self.device).cores:
            raise UserError(
                f"device is {self.device!r}: give auto, cpu or cuda:0; --threads says how many "
                "cores compute"
            )
        if self.dtype not in DTYPES:
            raise UserError(f"dtype is {self.dtype!r:.60}: choose one of {', '.join(DTYPES)}")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """All of it.

    Attributes:
        text: what is read.
        tokenizer: where the vocabulary comes from.
        model: the shape.
        training: how it learns.

    Raises:
        UserError: if there is no text, or no vocabulary.
    """

    text: TextConfig
    tokenizer: TokenizerConfig
    model: ShapeConfig = field(default_factory=ShapeConfig)
    training: LearningConfig = field(default_factory=LearningConfig)

    def __post_init__(self) -> None:
        if not self.text.train:
            raise UserError('text.train is missing: name files, such as train = ["data/*.txt"]')
        if self.tokenizer.path is None and self.tokenizer.vocab_size is None:
            raise UserError(
                "tokenizer.path and tokenizer.vocab_size are missing: name a tokenizer.json, or "
                "say how many tokens to make of the text"
            )

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """Read a file.

        Raises:
            UserError: if it can't be read, isn't TOML, or a setting is unknown, wrong or missing.
        """
        return cls.from_dict(read_toml(path), f" in {path}")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "") -> Self:
        """Build from nested dictionaries, as TOML gives them; `where` is told in errors.

        Raises:
            UserError: as from_toml.
        """
        tables: dict[str, Any] = {name: table() for name, table in _TABLES.items()}
        for name, value in data.items():
            if name not in _TABLES:
                raise unknown(name, value, where, _TABLES)
            if not isinstance(value, Mapping):
                raise UserError(f"{name} is {reprlib.repr(value)}{where}: it is a table, [{name}]")
            tables[name] = replaced(tables[name], name, value, where, _TABLES)
        try:
            return cls(**tables)
        except UserError as error:
            raise UserError(f"{error}{where}") from None

    def flat(self) -> dict[str, Any]:
        """All settings by the names that messages and reports use, such as training.steps."""
        return {
            f"{table}.{name}": value
            for table, settings in asdict(self).items()
            for name, value in settings.items()
        }


_TABLES: dict[str, type[Any]] = {
    "text": TextConfig,
    "tokenizer": TokenizerConfig,
    "model": ShapeConfig,
    "training": LearningConfig,
}
