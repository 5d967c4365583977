"""The network that is trained computes what the decoders compute that its weights are run by."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from specpipe.models.loader import build, load_model
from specpipe.models.shape import LINEAR_LAYERS, DecoderConfig
from specpipe.models.source import ModelSource
from specpipe.training.export import write_model
from specpipe.training.network import Network

IDS = np.random.default_rng(0).integers(0, 100, 90).tolist()
PLAIN = DecoderConfig(
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    width=64,
    ffn_width=96,
    vocab_size=100,
    output_size=100,
    context_length=128,
    rope_base=10000.0,
    norm_eps=1e-5,
    rotary_halves=True,
)
VARIANTS = {
    "plain": {},
    "tied": {"tied": True},
    "one key head": {"kv_heads": 1},
    "wide heads": {"head_dim": 32},
    "normed heads": {"qk_norm": True},
    "biases": {"biases": frozenset(LINEAR_LAYERS)},
    "biases of the attention": {"biases": frozenset(LINEAR_LAYERS[:4])},
}
NOT_IN_FOLDERS = {
    "gelu": {"activation": "gelu"},
    "gelu, biases": {"activation": "gelu", "biases": frozenset({"attn_q", "ffn_up", "ffn_down"})},
    "stretched": {"rope_divisors": tuple(1 + index / 2 for index in range(8))},
}


def make(changes: dict) -> Network:
    """Random weights, large enough that each one counts; none is its beginning's zero or one."""
    network, random = Network(replace(PLAIN, **changes)), torch.Generator().manual_seed(1)
    for name, weight in network.named_parameters():
        low, high = (0.5, 1.5) if "norm" in name else (-0.3, 0.3)
        torch.nn.init.uniform_(weight, low, high, generator=random)
    return network.eval()


def logits(network: Network) -> np.ndarray:
    with torch.no_grad():
        return network.logits(network(torch.tensor([IDS])))[0].numpy()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_folder_runs_as_what_was_trained(tmp_path, changes) -> None:
    """A wrong name or rotary pairs of the other kind: trained well, and fluent nonsense when run.

    transformers is held against it too, since others will load the folder.
    """
    network = make(changes)
    write_model(tmp_path, network, 0, {})
    expected = logits(network)
    assert np.ptp(expected) > 1, "so small that anything would agree"
    decoder = load_model(tmp_path, dtype="float32")
    np.testing.assert_allclose(decoder.forward(decoder.open(), IDS, len(IDS)), expected, atol=1e-4)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        found = theirs(torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("changes", NOT_IN_FOLDERS.values(), ids=NOT_IN_FOLDERS)
def test_it_agrees_with_the_decoder_where_no_folder_can_say_it(changes) -> None:
    """A distilled draft takes after its target, whatever that is."""
    network = make(changes)
    weights = {name: weight.detach().numpy() for name, weight in network.named_parameters()}
    source = ModelSource(network.config, lambda name: weights[name].copy())
    decoder = build(network.config, source, dtype="float32")
    found = decoder.forward(decoder.open(), IDS, len(IDS))
    np.testing.assert_allclose(found, logits(network), atol=1e-4)


def test_a_beginning_is_the_seed_s() -> None:
    """A run that can't be repeated; or layers that add so much that deep networks don't learn."""
    networks = [Network(PLAIN) for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        network.initialise(seed)
    states = [network.state_dict() for network in networks]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["token_embd.weight"], states[2]["token_embd.weight"])
    adds, other = (
        states[0][f"blk.0.{name}.weight"].std().item() for name in ("ffn_down", "ffn_up")
    )
    assert adds == pytest.approx(other / 2, rel=0.05)  # by the root of 2 * layers


def test_dropout_is_for_training_alone() -> None:
    """Held-out losses and the model's answers would be noise."""
    network = Network(PLAIN, dropout=0.5)
    network.initialise(0)
    tokens = torch.tensor([IDS[:10]])
    assert not torch.equal(network(tokens), network(tokens))
    network.eval()
    assert torch.equal(network(tokens), network(tokens))
