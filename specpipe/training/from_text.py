"""Trains a decoder from scratch on text files, and goes on where it was interrupted.

What there is of it is kept in a folder beside the model's future place until the model is there:
the vocabulary, the text as ids, a checkpoint.
"""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from specpipe.errors import UserError
from specpipe.models.loader import torch_device
from specpipe.models.store import check_absent, new_folder
from specpipe.training.export import write_model
from specpipe.training.network import Network
from specpipe.training.optimising import Schedule, StageTold, Training
from specpipe.training.text_report import TextFindings, write_text_report
from specpipe.training.text_tokenizer import (
    TextTokenizer,
    make_tokenizer,
    read_tokenizer,
    take_tokenizer,
)
from specpipe.training.texts import find_texts
from specpipe.training.token_file import Tokens, Windows, tokens_of
from specpipe.training.train_config import TrainConfig
from specpipe.training.work_folder import open_work

CHECKPOINT = "checkpoint.pt"
_LOOKED_AT = 64  # sequences of what is held out: enough to see a curve


class TextTraining:
    """One model in the making.

    Args:
        config: how to make it; that of an earlier start.
        folder: the model's, which is not there yet.
        threads: cores that compute; other sums are rounded otherwise, so a run that shall end with
            the same bits goes on with as many.
        told: of the progress.

    Raises:
        UserError: if there is no text, vocabulary or device as the recipe has it, the recipe is
            another one than before, or the folder is there. Nothing is left behind.
    """

    def __init__(self, config: TrainConfig, folder: Path, *, threads: int, told: StageTold) -> None:
        check_absent(folder)
        self.config, self.folder, self._threads, self._told = config, folder, threads, told
        self._device = _device(config.training.device)
        self._mixed = _is_mixed(config.training.dtype, self._device)
        self._texts = find_texts(config.text.train, "text.train")
        validation = config.text.validation
        self._unseen = find_texts(validation, "text.validation") if validation else None
        end, path = config.tokenizer.end, config.tokenizer.path
        if path is not None and not Path(path).is_file():
            raise UserError(
                f"tokenizer.path is {path!r:.100}, which is no file here ({Path.cwd()}): mend it, "
                "or train the model first that it is to come from"
            )
        self._given = None if path is None else read_tokenizer(Path(path).parent, end)
        # A token stands for a byte at least.
        _require_length(self._texts.size, config, "bytes")
        self._fixed = config.flat() | {
            "the text's SHA-256": self._texts.sha256,
            "the validation's SHA-256": self._unseen.sha256 if self._unseen else None,
            "the tokenizer's SHA-256": self._given.sha256 if self._given else None,
        }
        self.work = open_work(folder, "train", self._fixed, CHECKPOINT)

    def run(self) -> TextFindings:
        """All of it; at the end the model is in its folder.

        Raises:
            UserError: if the text is too short, the loss is no number any more, or something can't
                be written.
        """
        torch.set_num_threads(self._threads)
        tokenizer = self._tokenizer()
        try:
            learned, held_out = self._split(tokenizer)
        except _TooShortError:
            shutil.rmtree(self.work)  # of no use with a shorter context either
            raise
        config = self.config
        network = Network(config.model.decoder(tokenizer.size), config.training.dropout)
        network.initialise(config.training.seed)
        network.to(self._device)
        training = self._train(network, learned, held_out)
        findings = TextFindings(
            name=self.folder.name,
            recipe=config.flat(),
            parameters=sum(each.numel() for each in network.parameters()),
            vocabulary=tokenizer.size,
            text_tokens=len(learned),
            held_out_tokens=len(held_out),
            curve=training.curve,
        )
        self._publish(network, tokenizer, findings)
        return findings

    # -- stages

    def _tokenizer(self) -> TextTokenizer:
        """The vocabulary, in the work's folder."""
        wanted = self.config.tokenizer
        asked = json.dumps([wanted.vocab_size, wanted.end, self._texts.sha256])
        key = self._given.sha256 if self._given else hashlib.sha256(asked.encode()).hexdigest()
        folder = self.work / f"tokenizer-{key[:16]}"
        if folder.exists():
            return read_tokenizer(folder)
        if self._given is not None:
            return take_tokenizer(self._given, folder)
        assert wanted.vocab_size is not None
        self._told("making a vocabulary", 0.0, f"{self._texts.size / 1e6:.1f} MB of text")
        made = make_tokenizer(self._texts, wanted.vocab_size, wanted.end, folder)
        fewer = "" if made.size == wanted.vocab_size else (
            f", {wanted.vocab_size:,} were asked for: the text does not repeat more"
        )  # fmt: skip
        self._told("making a vocabulary", 1.0, f"{made.size:,} tokens{fewer}")
        return made

    def _split(self, tokenizer: TextTokenizer) -> tuple[Tokens, Tokens]:
        """The text to learn from, and what is only looked at."""
        told = partial(self._told, "reading")
        text = tokens_of(self._texts, tokenizer, self.work, told)
        length, config = self.config.model.context_length, self.config
        if self._unseen is not None:
            unseen = tokens_of(self._unseen, tokenizer, self.work, told)
            _require_length(len(text), config, "tokens")
            _require_length(len(unseen), config, "tokens", "text.validation")
            return text, unseen
        pieces = (len(text) - 1) // length
        held_out = max(1, round(pieces * config.text.held_out))
        if held_out >= pieces:
            _require_length(len(text) - length, config, "tokens beside what is held out")
        border = (pieces - held_out) * length
        # The token at the border is one side's to guess, and only fed on the other.
        return text[: border + 1], text[border:]

    def _train(self, network: Network, learned: Tokens, held_out: Tokens) -> Training:
        wanted, length = self.config.training, self.config.model.context_length
        windows, unseen = Windows(learned, length, wanted.seed), Windows(held_out, length)

        def loss(number: int) -> tuple[Tensor, int]:
            batch = windows.batch(number, wanted.sequences)
            return self._loss(network, batch), batch.shape[0] * length

        def look() -> float:
            found = [self._loss(network, one).item() for one in unseen.some(_LOOKED_AT)]
            return sum(found) / len(found)

        torch.manual_seed(wanted.seed)  # of dropout; a checkpoint knows how far it was drawn
        training = Training(
            network,
            Schedule(
                wanted.steps,
                None,
                wanted.learning_rate,
                warmup=wanted.warmup,
                lowest=wanted.lowest,
            ),
            self.work / CHECKPOINT,
            weight_decay=wanted.weight_decay,
            clip=wanted.clip,
            every=wanted.look_every,
            recipe=json.dumps(self._fixed, sort_keys=True),
        )
        try:
            training.run(loss, look, partial(self._told, "training"), accumulate=wanted.accumulate)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{wanted.sequences} sequences of {length} tokens do not fit the GPU: lower "
                "training.sequences, and raise training.accumulate by as much"
            ) from None
        return training

    def _loss(self, network: Network, batch: NDArray[np.int64]) -> Tensor:
        """Mean over int64[sequences, length + 1], each token guessed from those before it."""
        tokens = torch.from_numpy(batch).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._mixed):
            logits = network.logits(network(tokens[:, :-1]))
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def _publish(self, network: Network, tokenizer: TextTokenizer, findings: TextFindings) -> None:
        """Put the model and the report in their place, and remove what was kept on the way."""
        with new_folder(self.folder) as unfinished:
            tokenizer.copy_to(unfinished)
            write_model(unfinished, network, tokenizer.end, findings.recipe)
            write_text_report(unfinished, findings)
        shutil.rmtree(self.work)


class _TooShortError(UserError):
    """A text that no sequence can be taken from."""


def _require_length(found: int, config: TrainConfig, what: str, name: str = "text.train") -> None:
    """Refuse less than a sequence, and the token behind it.

    Raises:
        UserError: with what there is.
    """
    if found <= (length := config.model.context_length):
        raise _TooShortError(
            f"{name} has {found:,} {what}, and a sequence takes {length + 1:,} tokens: give more "
            "text, or lower model.context_length"
        )


def _device(name: str) -> torch.device:
    """The one asked for; with "auto" a GPU, if there is one.

    Raises:
        UserError: if it is not there.
    """
    if name != "auto":
        return torch_device(name)
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def _is_mixed(dtype: str, device: torch.device) -> bool:
    """Whether matrices are multiplied in bfloat16.

    Raises:
        UserError: if they can't be.
    """
    if dtype == "bfloat16" and device.type != "cuda":
        raise UserError("training.dtype bfloat16 needs a CUDA device: use float32 or auto on a CPU")
    return dtype != "float32" and device.type == "cuda"
