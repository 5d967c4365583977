"""Checkpoints of torch: right against a model in torch's own words; clear on what is broken."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers
from torch import nn
from torch.nn import functional

from specpipe.config import Config
from specpipe.errors import UserError
from specpipe.models.loader import load_model
from specpipe.models.prune import prune
from specpipe.models.store import list_models, resolve
from specpipe.models.summary import show
from specpipe.pair import ModelPair
from tests.unit.models.cuda.test_decoder import PLACES, load

IDS = np.random.default_rng(0).integers(0, 257, 120).tolist()
END = 256
SETTINGS = {
    "n_heads": 8,
    "n_layers": 3,
    "n_embd": 128,
    "context_length": 128,
    "vocab_size": 304,
    "dropout": 0.1,
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        keys = heads // 4 * self.head_dim
        self.query, self.key = nn.Linear(width, width, False), nn.Linear(width, keys, False)
        self.value, self.proj = nn.Linear(width, keys, False), nn.Linear(width, width, False)

    def forward(self, x):
        queries, keys, values = (
            layer(x).view(len(x), -1, self.head_dim).transpose(0, 1)
            for layer in (self.query, self.key, self.value)
        )
        keys, values = keys.repeat_interleave(4, 0), values.repeat_interleave(4, 0)
        mixed = functional.scaled_dot_product_attention(
            rotated(queries), rotated(keys), values, is_causal=True
        )
        return self.proj(mixed.transpose(0, 1).flatten(1))


def rotated(x):
    """RoPE on interleaved pairs: [heads, positions, head_dim]."""
    angles = torch.arange(x.shape[1])[:, None] * 10000.0 ** -(
        torch.arange(0, x.shape[2], 2) / x.shape[2]
    )
    even, odd = x[..., ::2], x[..., 1::2]
    turned = even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos()
    return torch.stack(turned, -1).flatten(-2)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(width, 4 * width, False), nn.GELU(), nn.Linear(4 * width, width, False)
        )

    def forward(self, x):
        return self.net(x)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.sa_heads, self.ffwd = Attention(width, heads), FeedForward(width)
        self.rms1, self.rms2 = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x, second="rms1"):
        x = x + self.sa_heads(self.rms1(x))
        return x + self.ffwd(getattr(self, second)(x))


class Judge(nn.Module):
    def __init__(self, settings) -> None:
        super().__init__()
        width, vocabulary = settings["n_embd"], settings["vocab_size"]
        self.token_embedding = nn.Embedding(vocabulary, width)
        blocks = [Block(width, settings["n_heads"]) for _ in range(settings["n_layers"])]
        self.blocks, self.rms_f = nn.ModuleList(blocks), nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, False)

    @torch.no_grad()
    def forward(self, ids, second="rms1"):
        """Logits [positions, vocabulary]; `second` is the norm before the feed-forward layer."""
        x = self.token_embedding(torch.tensor(ids))
        for block in self.blocks:
            x = block(x, second)
        return self.lm_head(self.rms_f(x)).numpy()


def make(path: Path, *, seed=0, dtype=torch.float32, change=lambda state: None, **settings):
    """Save a random checkpoint and its settings; return the model.

    `change` may edit what is saved, but for the model's own weights before they are.
    """
    torch.manual_seed(seed)
    settings = SETTINGS | settings
    judge = Judge(settings)
    for name, weight in judge.named_parameters():
        if "rms" in name:
            nn.init.uniform_(weight, *((3, 5) if "rms2" in name else (0.5, 1.5)))
        else:
            nn.init.normal_(weight, 0, 1 if "embedding" in name else weight.shape[1] ** -0.5)
    judge = judge.to(dtype)
    content = {"iter": 3, "val_loss": torch.tensor(3.5), "model_state_dict": judge.state_dict()}
    change(content)
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)
    stem = path.stem
    named = stem.replace("_model", "_config") if stem.endswith("_model") else stem
    (path.parent / f"{named}.json").write_text(json.dumps(settings))
    return judge.float()


def save_tokenizer(folder: Path) -> None:
    """The 256 bytes, and the token that ends GPT-2's texts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Library(models.BPE({letter: token for token, letter in enumerate(letters)}, []))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<|endoftext|>"])
    library.save(str(folder / "tokenizer.json"))


def state(content):
    return content["model_state_dict"]


def compiled(content) -> None:
    content["model_state_dict"] = {f"_orig_mod.{k}": v for k, v in state(content).items()}


def with_tables(content) -> None:
    table = torch.zeros(128, 8)
    for name in ("rope.inv_freq", "rope.cos_cached", "rope.sin_cached"):
        state(content)[f"blocks.0.sa_heads.{name}"] = table
    state(content)["blocks.0.sa_heads.tril"] = torch.ones(128, 128).tril().bool()


def transposed(content) -> None:
    weight = state(content)["lm_head.weight"]
    state(content)["lm_head.weight"] = weight.t().contiguous().t()


def tiny_embeddings(content) -> None:
    """So small that what a norm adds to the mean square counts."""
    state(content)["token_embedding.weight"] *= 1e-3


VARIANTS = {
    "plain": {},
    "one key head": {"n_heads": 4},
    "bfloat16": {"dtype": torch.bfloat16},
    "compiled": {"change": compiled},
    "with tables": {"change": with_tables},
    "transposed in the file": {"change": transposed},
    "tiny embeddings": {"change": tiny_embeddings},
}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_agrees_with_torch_at_prefill_decode_and_after_truncate(tmp_path, variant) -> None:
    path = tmp_path / "main_model.pt"
    judge = make(path, **variant)
    model = load_model(path, dtype="float32")
    expected, other = judge(IDS[:100]), judge(IDS[:60] + IDS[100:])
    assert np.ptp(expected) > 1, "so small that anything would agree"
    slot = model.open()
    prefill = model.forward(slot, IDS[:80], 80)
    decode = np.concatenate([model.forward(slot, [token], 1) for token in IDS[80:100]])
    np.testing.assert_allclose(np.concatenate([prefill, decode]), expected, atol=1e-4)
    model.truncate(slot, 60)
    np.testing.assert_allclose(model.forward(slot, IDS[100:], 20), other[60:], atol=1e-4)


def test_the_norm_that_is_in_the_file_but_was_not_trained_is_not_used(tmp_path) -> None:
    """With rms2 in its obvious place, text is fluent, and another."""
    path = tmp_path / "main_model.pt"
    judge = make(path)
    model = load_model(path, dtype="float32")
    found = model.forward(model.open(), IDS, len(IDS))
    np.testing.assert_allclose(found, judge(IDS), atol=1e-4)
    obvious = judge(IDS, second="rms2")
    assert np.abs(found - obvious).max() > 1
    assert (found.argmax(-1) != obvious.argmax(-1)).any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_bits_do_not_depend_on_how_tokens_are_fed(tmp_path, threads, dtype) -> None:
    """The feed-forward layer is another one than in test_decoder.py."""
    make(tmp_path / "main_model.pt")
    model = load_model(tmp_path, dtype=dtype, threads=threads)
    slot = model.open()
    expected = model.forward(slot, IDS[:100], 100)
    for start in (63, 5):  # falling, since each pass leaves but its own rows
        for rows in range(1, 17):
            model.truncate(slot, start)
            got = model.forward(slot, IDS[start : start + rows], rows)
            assert np.array_equal(got, expected[start : start + rows]), (start, rows)


@pytest.mark.parametrize(("device", "dtype"), PLACES)
def test_the_decoder_in_torch_agrees(tmp_path, device, dtype) -> None:
    judge = make(tmp_path / "main_model.pt")
    model = load(tmp_path, device, dtype)
    found = model.forward(model.open(), IDS, len(IDS))
    np.testing.assert_allclose(found, judge(IDS), atol=1e-4 if dtype == "float32" else 0.3)


# -- as a target and a draft


def pair_of(target: Path, draft: Path | str) -> ModelPair:
    return ModelPair.find(
        Config().override(
            models_dir=str(target.parent),
            target={"model": str(target)},
            draft={"model": str(draft)},
        )
    )


def prefer_padding(content) -> None:
    state(content)["lm_head.weight"][257:] *= 100


def test_two_checkpoints_share_a_folder_and_a_tokenizer(tmp_path) -> None:
    """As their owners lay them out: NAME_model.pt, NAME_config.json, all in saved_models."""
    target, draft = tmp_path / "main_model.pt", tmp_path / "draft_small_model.pt"
    make(target, change=prefer_padding)
    make(draft, seed=1, n_heads=4, n_layers=1, n_embd=64, context_length=64)
    save_tokenizer(tmp_path)
    pair = pair_of(target, draft)
    assert (pair.context_length, pair.draft_context_length) == (128, 64)
    assert pair.target.name == "main_model"
    assert pair.tokenizer.stop_token_ids == (END,)
    assert pair.tokenizer.encode("a<|endoftext|>")[1] == END
    assert pair.target.paths == tuple(
        tmp_path / name for name in ("main_model.pt", "main_config.json", "tokenizer.json")
    )
    assert pair.tokenizer.used_size == 257


def test_the_padded_tail_can_never_be_produced(tmp_path) -> None:
    """GPT-2 has 50257 tokens, and the weights 50304: the others' are noise, and have no text."""
    target = tmp_path / "main_model.pt"
    judge = make(target, change=prefer_padding)
    save_tokenizer(tmp_path)
    pair = pair_of(target, "none")
    model = load_model(target, dtype="float32", output_size=pair.tokenizer.used_size)
    found = model.forward(model.open(), IDS, len(IDS))
    assert (judge(IDS).argmax(-1) >= 257).any()
    np.testing.assert_allclose(found, judge(IDS)[:, :257], atol=1e-4)


def test_a_tokenizer_of_more_tokens_than_the_weights_know_is_refused(tmp_path) -> None:
    make(tmp_path / "main_model.pt", vocab_size=250)
    save_tokenizer(tmp_path)
    with pytest.raises(UserError, match="has 257 tokens and its weights 250"):
        pair_of(tmp_path / "main_model.pt", "none")


# -- in the store


def test_checkpoints_are_found_by_path_by_folder_and_by_name(tmp_path) -> None:
    make(tmp_path / "main_model.pt")
    make(tmp_path / "folder" / "tiny.pt")
    (tmp_path / "without_settings.pt").write_bytes(b"")
    assert [model.name for model in list_models(tmp_path)] == ["folder", "main_model"]
    for name in ("main_model", str(tmp_path / "main_model.pt")):
        assert resolve(name, tmp_path).weights == tmp_path / "main_model.pt"
        assert resolve(name, tmp_path).name == "main_model"
    for name in ("folder", str(tmp_path / "folder")):
        found = resolve(name, tmp_path)
        assert [path.name for path in found.paths] == ["tiny.pt", "tiny.json"]
    with pytest.raises(UserError, match=r"several .pt files \(main_model.pt, without_settings.pt"):
        resolve(str(tmp_path), tmp_path)


def test_show_tells_what_a_checkpoint_holds(tmp_path) -> None:
    make(tmp_path / "main_model.pt", dtype=torch.bfloat16)
    summary = show("main_model", tmp_path)
    assert (summary.layers, summary.context_length, summary.vocab_size) == (3, 128, 304)
    layer = 128 * (128 + 2 * 32 + 128 + 2 * 4 * 128) + 128
    assert summary.dtypes == {"bfloat16": 2 * 304 * 128 + 3 * layer + 128}
    with pytest.raises(UserError, match=r"main_model.pt can't be pruned"):
        prune(resolve("main_model", tmp_path), [0], tmp_path / "out")


# -- what is broken, or hostile


def refused(path: Path, what: str) -> None:
    with pytest.raises(UserError, match=what) as raised:
        load_model(path)
    assert "\n" not in str(raised.value)
    assert path.stem.removesuffix("_model") in str(raised.value)


class Program:
    """What a pickle can hold: a call that is made when it is read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self):
        return Path.touch, (self._path,)


@pytest.mark.parametrize("place", ["model_state_dict", "optimizer_state_dict", "lm_head.weight"])
def test_a_program_in_a_checkpoint_is_not_run(tmp_path, place) -> None:
    proof = tmp_path / "it ran"

    def change(content) -> None:
        (state(content) if "." in place else content)[place] = Program(proof)

    make(tmp_path / "main_model.pt", change=change)
    refused(
        tmp_path / "main_model.pt",
        r"main_model.pt holds more than tensors \([\w.]+\) and is not loaded, since that could run",
    )
    assert not proof.exists()


def compress(content: bytes, path: Path) -> bytes:
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, file in files.items():
            archive.writestr(name, file)
    return path.read_bytes()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content, _: content[:-100],
        lambda content, _: content[:1000],
        lambda content, _: b"",
        lambda content, _: b"torch, more or less" * 100,
        lambda content, _: b"PK\x03\x04" + bytes(100),
        lambda content, _: content.replace(b"M\x30\x01", b"M\xff\xff"),  # shapes of 304
        compress,
    ],
    ids=["shorter", "cut off", "empty", "a text", "half a zip", "more numbers", "compressed"],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused(tmp_path, spoil) -> None:
    """Sizes are the file's word: nothing is allocated by them."""
    path = tmp_path / "main_model.pt"
    make(path)
    path.write_bytes(spoil(path.read_bytes(), tmp_path / "spoilt.zip"))
    refused(path, "main_model.pt is not usable")


def put(name, value):
    return lambda content: state(content).update({name: value})


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: content.pop("model_state_dict"), "no weights under model_state_dict"),
        (lambda content: content.update(model_state_dict=[1]), "no weights under model_state_dict"),
        (put(3, torch.zeros(1)), "no weights under model_state_dict"),
        (lambda content: state(content).pop("rms_f.weight"), "tensor rms_f.weight is missing"),
        (
            lambda content: state(content).pop("blocks.1.ffwd.net.2.weight"),
            "tensor blocks.1.ffwd.net.2.weight is missing",
        ),
        (
            put("blocks.2.rms1.weight", torch.zeros(64)),
            r"blocks.2.rms1.weight has shape \[64\], expected \[128\]",
        ),
        (put("blocks.0.ffwd.net.0.bias", torch.zeros(512)), "a tensor blocks.0.ffwd.net.0.bias"),
        (put("blocks.3.rms1.weight", torch.zeros(128)), "a tensor blocks.3.rms1.weight"),
        (put("more\nlines", torch.zeros(128)), "a tensor more lines"),
        (put("rms_f.weight", torch.ones(128, dtype=torch.int64)), "'rms_f.weight' has type int64"),
        (put("rms_f.weight", torch.ones(128, dtype=torch.complex64)), "has type complex64"),
        (put("rms_f.weight", [1.0] * 128), "'rms_f.weight' is no plain tensor but of type list"),
        (put("rms_f.weight", torch.ones(128).to_sparse()), "'rms_f.weight' is no plain tensor"),
        (put("rms_f.weight", torch.ones(1).expand(128)), "fewer numbers than its shape says"),
        (put("rms_f.weight", torch.ones(128, device="meta")), "fewer numbers than its shape says"),
    ],
)
def test_weights_that_are_not_what_settings_say_are_refused(tmp_path, change, what) -> None:
    make(tmp_path / "main_model.pt", change=change)
    refused(tmp_path / "main_model.pt", what)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"n_layers": None}, r"main_config.json .*n_layers = None"),
        ({"n_layers": "3"}, "n_layers = '3'"),
        ({"n_layers": 4}, "blocks.3.rms1.weight is missing|blocks.3.sa_heads.query"),
        ({"n_layers": 2}, "a tensor blocks.2"),
        ({"n_layers": 1 << 23}, r"blocks.3\.\S+ is missing"),
        ({"n_heads": 6}, "n_heads = 6, no multiple of 4"),
        ({"n_heads": True}, "n_heads = True"),
        ({"n_heads": 12}, "n_embd = 128, no multiple of n_heads = 12"),
        ({"n_heads": 128}, "128 heads on 32, 1 elements each"),
        ({"n_embd": 64}, r"token_embedding.weight has shape \[304, 128\], expected \[304, 64\]"),
        ({"n_embd": 1 << 30}, "n_embd = 1073741824"),
        ({"vocab_size": 50304}, r"token_embedding.weight has shape \[304, 128\]"),
        ({"context_length": 0}, "context_length = 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, what) -> None:
    make(tmp_path / "main_model.pt")
    (tmp_path / "main_config.json").write_text(json.dumps(SETTINGS | settings))
    refused(tmp_path / "main_model.pt", what)


@pytest.mark.parametrize("name", ["main_model", "main"])
def test_missing_settings_are_named(tmp_path, name) -> None:
    path = tmp_path / f"{name}.pt"
    make(path)
    settings = tmp_path / ("main_config.json" if "_" in name else "main.json")
    settings.write_text("{")
    refused(path, f"{settings.name} is not JSON")
    settings.unlink()
    refused(path, f"{path.name} needs its settings, and .*{settings.name} is missing: put it there")
