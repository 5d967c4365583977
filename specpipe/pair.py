"""A target and its draft as files and as one vocabulary; text in, token ids out.

Reads metadata only: weights are the workers' business.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from specpipe.config import Config, ModelConfig
from specpipe.errors import UserError
from specpipe.models.draft_folder import is_draft_folder, target_of
from specpipe.models.gguf_file import GGUFFile
from specpipe.models.gguf_model import read_config
from specpipe.models.hf_folder import read_limits
from specpipe.models.pt_checkpoint import is_checkpoint
from specpipe.models.shape import DecoderConfig
from specpipe.models.source import open_model
from specpipe.models.store import ModelFiles, models_dir, resolve
from specpipe.sampling import SamplingParams
from specpipe.tokenizer import Tokenizer, check_pair

Prompt = str | Sequence[Mapping[str, str]] | Sequence[int]
"""A text, a conversation (`role` and `content` of each message), or token ids."""


@dataclass(frozen=True, slots=True)
class ModelPair:
    """What the front end knows of the models.

    Attributes:
        target, draft: files; no draft: there is no model that guesses.
        tokenizer: the target's; the draft's agrees with it.
        context_length: most tokens of a prompt and its completion together.
        draft_context_length: the same for the draft, which may stop guessing earlier.
    """

    target: ModelFiles
    draft: ModelFiles | None
    tokenizer: Tokenizer
    context_length: int
    draft_context_length: int

    @property
    def draft_name(self) -> str:
        """What the draft guesses with."""
        return self.draft.name if self.draft else "look-ups"

    @classmethod
    def find(cls, config: Config) -> "ModelPair":
        """Look up both models and compare their vocabularies.

        Raises:
            UserError: a model is missing or broken, the vocabularies differ, or the context asked
                for is longer than the target's.
        """
        directory = models_dir(Path(config.models_dir) if config.models_dir else None)
        target = resolve(config.target.model, directory)
        tokenizer, own_context = _read(target, config.target)
        context = config.pipeline.context_length or own_context
        if context > own_context:
            raise UserError(
                f"context_length is {context}: {target.name} was made for at most {own_context}"
            )
        if config.draft is None or not config.draft.has_model:
            return cls(target, None, tokenizer, context, context)
        draft = resolve(config.draft.model, directory)
        draft_tokenizer, draft_context = _read(draft, config.draft)
        check_pair(tokenizer, draft_tokenizer)
        return cls(target, draft, tokenizer, context, min(context, draft_context))

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Token ids of a prompt; a plain text becomes the user's turn in the model's chat template.

        Args:
            prompt: see Prompt.
            raw: take a text as it is, without the chat template.

        Raises:
            UserError: if it is empty, or leaves no room in the context for a single new token.
        """
        tokens = self._tokens(prompt, raw)
        if not tokens:
            raise UserError(
                "the prompt is empty: give some text with --prompt, or on standard input"
            )
        if len(tokens) >= self.context_length:
            raise UserError(
                f"the prompt has {len(tokens)} tokens and the context of {self.target.name} holds "
                f"{self.context_length}: shorten the prompt"
            )
        return tokens

    def check(self, params: SamplingParams) -> None:
        """Refuse parameters that name tokens which the target doesn't have.

        Raises:
            UserError: naming the first one.
        """
        known = self.tokenizer.vocab_size
        for name in ("logit_bias", "stop_token_ids"):
            for token in sorted(getattr(params, name)):
                if token >= known:
                    raise UserError(
                        f"{name} names the token id {token}: {self.target.name} knows 0 to "
                        f"{known - 1}"
                    )

    def _tokens(self, prompt: Prompt, raw: bool) -> list[int]:
        if isinstance(prompt, str):
            if not prompt.strip():
                return []
            if raw or not self.tokenizer.has_chat_template:
                return self.tokenizer.encode(prompt)
            return self.tokenizer.encode_chat([{"role": "user", "content": prompt}])
        ids = [item for item in prompt if isinstance(item, int)]
        messages = [item for item in prompt if not isinstance(item, int)]
        return self.tokenizer.encode_chat(messages) if messages else self._checked_ids(ids)

    def _checked_ids(self, ids: list[int]) -> list[int]:
        for token in ids:
            if not 0 <= token < self.tokenizer.vocab_size:
                raise UserError(
                    f"the prompt has the token id {token}: {self.target.name} knows 0 to "
                    f"{self.tokenizer.vocab_size - 1}"
                )
        return ids


def _read(files: ModelFiles, model: ModelConfig) -> tuple[Tokenizer, int]:
    """A model's tokenizer, and the context length that it was made for.

    Raises:
        UserError: if the model is broken or can't be run, or they don't belong together.
    """
    context: int | None
    vocab_size: int | None
    weights = files.weights
    if model.backend == "transformers":
        if not weights.is_dir():
            raise UserError(
                f"the backend transformers reads folders of Hugging Face, and {weights} is a "
                "file: name such a folder, or choose the backend specpipe"
            )
        tokenizer = Tokenizer.from_folder(weights)
        context, vocab_size = read_limits(weights)
    else:
        tokenizer, config = read_model(weights)
        context, vocab_size = config.context_length, config.vocab_size
    if vocab_size is not None and tokenizer.used_size > vocab_size:
        raise UserError(
            f"the tokenizer of {files.name} has {tokenizer.used_size} tokens and its weights "
            f"{vocab_size}: they don't belong together, fetch the model again"
        )
    if context is None:
        raise UserError(
            f"the config.json of {files.name} doesn't say how many tokens its context holds: "
            "choose another model"
        )
    return tokenizer, context


def read_model(weights: Path) -> tuple[Tokenizer, DecoderConfig]:
    """The vocabulary and the shape of a model that our own decoder runs, as the format has them.

    Raises:
        UserError: if it is broken, or can't be run.
    """
    if is_draft_folder(weights):
        return read_model(target_of(weights))[0], open_model(weights).config
    if weights.is_dir():
        return Tokenizer.from_folder(weights), open_model(weights).config
    if is_checkpoint(weights):
        config = open_model(weights).config
        return Tokenizer.from_gpt2(weights.parent), config
    file = GGUFFile(weights)  # opened once: a vocabulary takes a while to parse
    return Tokenizer.from_gguf(file.metadata), read_config(file)
