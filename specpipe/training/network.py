"""A decoder of the llama family as a torch module, to be trained.

Its parameters have the names of `DecoderConfig.weight_shapes`, so that what is trained can be
written in any format that the readers know. Rotary pairs lie half a head apart, as Hugging Face
stores them. For running a model there are better ways (models/cpu, models/cuda).
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel

from specpipe.models.shape import DecoderConfig

_INITIAL_DEVIATION = 0.02
# Without cuDNN's attention: it plans for each new shape, ten times as long as a step takes, and
# texts come in all lengths.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class Block(nn.Module):
    """Attention and a feed-forward layer, each behind a norm and added to what came in."""

    attn_q: nn.Linear
    attn_k: nn.Linear
    attn_v: nn.Linear
    attn_output: nn.Linear
    ffn_gate: nn.Linear
    ffn_up: nn.Linear
    ffn_down: nn.Linear

    def __init__(self, config: DecoderConfig, dropout: float) -> None:
        super().__init__()
        self._config, self._dropout = config, dropout
        self.attn_norm = nn.RMSNorm(config.width, config.norm_eps)
        self.ffn_norm = nn.RMSNorm(config.width, config.norm_eps)
        for name, (outputs, inputs) in config.matrices().items():
            setattr(self, name, nn.Linear(inputs, outputs, bias=name in config.biases))
        if config.qk_norm:
            self.attn_q_norm = nn.RMSNorm(config.head_dim, config.norm_eps)
            self.attn_k_norm = nn.RMSNorm(config.head_dim, config.norm_eps)

    def forward(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """From hidden states [sequences, tokens, width] to the next ones."""
        x = x + self._dropped(self._attend(self.attn_norm(x), turns))
        y = self.ffn_norm(x)
        gated = self._config.gated
        inner = F.silu(self.ffn_gate(y)) * self.ffn_up(y) if gated else F.gelu(self.ffn_up(y))
        return x + self._dropped(self.ffn_down(inner))

    def _attend(self, x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        config = self._config
        heads = (*x.shape[:2], -1, config.head_dim)
        queries, keys, values = (
            layer(x).view(heads).transpose(1, 2)
            for layer in (self.attn_q, self.attn_k, self.attn_v)
        )
        if config.qk_norm:
            queries, keys = self.attn_q_norm(queries), self.attn_k_norm(keys)
        queries, keys = _rotate(queries, turns), _rotate(keys, turns)
        shared = config.heads // config.kv_heads
        mixed = F.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(shared, 1),
            values.repeat_interleave(shared, 1),
            is_causal=True,
            dropout_p=self._dropout if self.training else 0.0,
        )
        out: Tensor = self.attn_output(mixed.transpose(1, 2).flatten(2))
        return out

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self._dropout, self.training) if self._dropout else x


class Network(nn.Module):
    """The whole of it.

    Args:
        config: its shape; with `head_ids` its head has only these outputs.
        dropout: share of what each layer adds that is left out while it trains.
    """

    def __init__(self, config: DecoderConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocab_size, config.width)
        self.blk = nn.ModuleList(Block(config, dropout) for _ in range(config.layers))
        self.output_norm = nn.RMSNorm(config.width, config.norm_eps)
        if config.head_ids is not None:
            self.head = nn.Linear(config.width, len(config.head_ids), bias=False)
        elif not config.tied:
            self.output = nn.Linear(config.width, config.vocab_size, bias=False)

    def initialise(self, seed: int) -> None:
        """Random weights, those of layers that add to the stream the smaller the more there are.

        Source: GPT-2 (Radford et al., 2019), section 2.3.
        """
        random = torch.Generator().manual_seed(seed)
        residual = _INITIAL_DEVIATION / math.sqrt(2 * self.config.layers)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                adds = name.rsplit(".", 2)[-2] in ("attn_output", "ffn_down")
                deviation = residual if adds else _INITIAL_DEVIATION
                nn.init.normal_(parameter, 0.0, deviation, generator=random)

    def forward(self, tokens: Tensor) -> Tensor:
        """Normed hidden states float[sequences, tokens, width] of int64[sequences, tokens]."""
        x = self.token_embd(tokens)
        turns = self._turns(tokens.shape[1], x)
        with sdpa_kernel(_ATTENTION):
            for block in self.blk:
                x = block(x, turns)
        hidden: Tensor = self.output_norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Of normed hidden states [..., width]: one for each output of the head."""
        if self.config.head_ids is not None:
            return F.linear(hidden, self.head.weight)
        return F.linear(hidden, (self.token_embd if self.config.tied else self.output).weight)

    def _turns(self, count: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rotary angles, [count, head_dim] each."""
        config, half = self.config, self.config.head_dim // 2
        frequencies = config.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
        if config.rope_divisors is not None:
            frequencies /= torch.tensor(config.rope_divisors, dtype=torch.float64)
        angles = torch.outer(torch.arange(count, dtype=torch.float64), frequencies)
        angles = torch.cat((angles, angles), -1)
        return angles.cos().to(x), angles.sin().to(x)


def _rotate(x: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * turns[0] + torch.cat((-second, first), -1) * turns[1]
