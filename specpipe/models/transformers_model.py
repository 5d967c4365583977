"""Any causal model of transformers whose cache can be cut back, behind our own interface.

Slower than `decoder.py`, and of any architecture. Its kernels don't promise a row the same bits
whatever rows stand beside it: where two tokens are almost equally likely, a text may differ in
floating point from what the target writes alone.

Code that came with a model is never run, and weights are read from safetensors alone.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specpipe.errors import UserError
from specpipe.models.interface import Feed, Interrupted, Logits, OutputIds
from specpipe.models.loader import resolve_dtype, torch_device

_PROBE = (0, 1, 2, 3)
_TOLERANCE = {torch.float32: 1e-3}
"""How far, by the spread of the logits, a pass after a cut may be off."""


def load_transformers(
    path: Path,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int = 1,
    context_length: int,
    output_size: int,
    num_slots: int = 1,
) -> "TransformersModel":
    """Load a model with transformers' class for its architecture.

    Args:
        path: a Hugging Face folder.
        dtype: how weights are kept; auto is float32 on a CPU and bfloat16 on CUDA.
        device: cpu, or cuda:N as torch counts them.
        threads: how many compute, on a CPU; they are torch's, and so this process's.
        context_length: most tokens that a slot may hold.
        output_size: token ids below this can be produced.
        num_slots: sequences that can be held at once.

    Raises:
        UserError: if transformers isn't installed or can't load the model, or its cache can't be
            cut back.
    """
    try:
        from transformers import AutoModelForCausalLM  # noqa: PLC0415 (an extra, slow to import)
    except ImportError:
        raise UserError(
            "the backend transformers is not installed: run `pip install 'specpipe[transformers]'`"
        ) from None
    place = torch_device(device)
    kept = "float32" if (dtype, device) == ("auto", "cpu") else resolve_dtype(dtype, device)
    torch.set_num_threads(threads)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=getattr(torch, kept),
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:  # whatever a model's class may raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"transformers can't load {path} ({reason:.200}): choose another model"
        ) from None
    adapter = TransformersModel(model.to(place).eval(), context_length, output_size, num_slots)
    _check_cache(adapter, path)
    return adapter


class TransformersModel:
    """A `SequenceModel` (see interface.py) around a model of transformers, with a cache a slot.

    Args:
        model: in evaluation mode, on its device.
        context_length: most tokens that a slot may hold.
        output_size: token ids below this can be produced.
        num_slots: sequences that can be held at once.
    """

    def __init__(self, model: Any, context_length: int, output_size: int, num_slots: int) -> None:
        self._model = model
        self.dtype: torch.dtype = model.dtype
        self._output_size = output_size
        self._caches: list[Any] = [None] * num_slots
        self._lengths = [0] * num_slots
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        self.output_ids: OutputIds | None = None
        self.context_length = context_length
        self.num_slots = num_slots
        parameters = inspect.signature(model.forward).parameters
        # Without it, logits are computed for every token of a prompt.
        self._keeps_last = "logits_to_keep" in parameters
        # From 5.24 on it goes by its short name, and the long one is on its way out.
        self._cache_name = "cache" if "cache" in parameters else "past_key_values"

    def open(self) -> int:
        """Take a free slot, of length 0; raises RuntimeError when none is free."""
        from transformers import DynamicCache  # noqa: PLC0415

        for slot, cache in enumerate(self._caches):
            if cache is None:
                # Without the model's settings all its layers keep all entries, also where the
                # model attends to a window alone: only so can each be cut back.
                self._caches[slot], self._lengths[slot] = DynamicCache(), 0
                return slot
        raise RuntimeError(f"all {self.num_slots} slots are taken")

    def close(self, slot: int) -> None:
        """Give a slot back."""
        self.length(slot)
        self._caches[slot] = None

    def length(self, slot: int) -> int:
        """Tokens that an open slot holds."""
        if self._caches[slot] is None:
            raise RuntimeError(f"slot {slot} is not open")
        return self._lengths[slot]

    def truncate(self, slot: int, length: int) -> None:
        """Forget all but the first `length` tokens of the slot.

        Raises:
            ValueError: if the slot holds fewer.
        """
        if not 0 <= length <= self.length(slot):
            raise ValueError(f"cannot truncate {self.length(slot)} tokens to {length}")
        self._crop(slot, length)

    def forward(
        self,
        slot: int,
        tokens: Sequence[int],
        rows: int,
        interrupted: Interrupted = None,
    ) -> Logits | None:
        """Feed `tokens` at the end of the slot; return the logits after each of the last `rows`.

        `interrupted` is asked once, before the pass: there is no way into it.

        Returns:
            float32[rows, output_size].

        Raises:
            ValueError: for no tokens, too many, ids outside the vocabulary, or too many rows.
        """
        self._check(slot, tokens, rows)
        if interrupted is not None and interrupted():
            return None
        start = self._lengths[slot]
        try:
            with torch.inference_mode():
                ids = torch.tensor([tokens], device=self._model.device)
                more: dict[str, Any] = {self._cache_name: self._caches[slot]}
                if self._keeps_last:
                    more["logits_to_keep"] = max(rows, 1)
                logits = self._model(ids, use_cache=True, **more).logits[0]
                last = logits[logits.shape[0] - rows :, : self._output_size]
                kept: Logits = last.float().cpu().numpy()
        except BaseException:
            self._crop(slot, start)
            raise
        self._lengths[slot] = start + len(tokens)
        return kept

    def forward_all(
        self, feeds: Sequence[Feed], interrupted: Interrupted = None
    ) -> list[Logits] | None:
        """As `forward`, one sequence after the other: in a batch, padding would change their bits.

        Raises:
            ValueError: as `forward`.
        """
        before = [(feed.slot, self.length(feed.slot)) for feed in feeds]
        found: list[Logits] = []
        try:
            for feed in feeds:
                logits = self.forward(feed.slot, feed.tokens, feed.rows, interrupted)
                if logits is None:
                    return None
                found.append(logits)
        finally:
            if len(found) < len(feeds):
                for slot, length in before:
                    self._crop(slot, length)
        return found

    def cached(self, slot: int) -> int:
        """Tokens that the slot's cache really holds; other than `length` if it is ignored."""
        count: int = self._caches[slot].get_seq_length()
        return count

    def _crop(self, slot: int, length: int) -> None:
        """Cut the cache back, also one that a failed pass left longer in some layers."""
        for layer in self._caches[slot].layers:
            if (surplus := layer.get_seq_length() - length) > 0:
                layer.crop(-surplus)
        self._lengths[slot] = length

    def _check(self, slot: int, tokens: Sequence[int], rows: int) -> None:
        room = self.context_length - self.length(slot)
        if not 0 <= rows <= len(tokens) or not tokens:
            raise ValueError(f"{rows} rows of {len(tokens)} tokens cannot be had")
        if len(tokens) > room:
            raise ValueError(
                f"{len(tokens)} tokens do not fit into the {room} places left of a context of "
                f"{self.context_length}"
            )
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise ValueError(f"token ids must lie between 0 and {self.vocab_size - 1}")


def _check_cache(model: TransformersModel, path: Path) -> None:
    """Refuse a model that goes on wrongly after its cache was cut back.

    Raises:
        UserError: naming what it lies in.
    """
    slot = model.open()
    reason = "its logits are others afterwards"
    try:
        whole = model.forward(slot, _PROBE, 1)
        model.truncate(slot, 2)
        again = model.forward(slot, _PROBE[2:], 1)
        assert whole is not None
        assert again is not None
        tolerance = _TOLERANCE.get(model.dtype, 0.05) * np.ptp(whole)
        if model.cached(slot) == len(_PROBE) and np.abs(whole - again).max() <= tolerance:
            return
    except Exception as error:  # whatever a model's class may raise
        reason = " ".join(str(error).split()) or type(error).__name__
    finally:
        model.close(slot)
    raise UserError(
        f"{path} keeps no cache that can be cut back to fewer tokens, as a wrong guess demands "
        f"({reason:.120}): choose a model with ordinary attention"
    )
