"""Peers: refused in one line where they can't take part; each answer timed in a process apart."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from specpipe.bench import peer_process
from specpipe.bench.peers import WAYS, check_peers, peer_contenders, start_peer
from specpipe.errors import SpecpipeError, UserError
from specpipe.models.store import ModelFiles
from specpipe.sampling import SamplingParams


def pair(weights: Path, draft: Path | None = None) -> Any:
    """What is asked of a ModelPair."""
    files = [path and ModelFiles("m", path.parent, path) for path in (weights, draft)]
    tokenizer = SimpleNamespace(stop_token_ids=(2,))
    return SimpleNamespace(target=files[0], draft=files[1], tokenizer=tokenizer, context_length=256)


def test_a_peer_that_cannot_take_part_is_named_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour of measurements that ends with an ImportError."""
    with pytest.raises(UserError, match=r"no peer is called 'vllm': there are transformers"):
        check_peers(["vllm"], pair(tmp_path / "m.gguf"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"llama\.cpp is not installed: .*specpipe\[peers\]"):
        check_peers(["llama.cpp"], pair(tmp_path / "m.gguf"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match=r"llama\.cpp reads \.gguf files"):
        check_peers(["llama.cpp"], pair(tmp_path))
    check_peers(list(WAYS), pair(tmp_path / "m.gguf"))


def test_each_way_of_a_peer_is_a_contender_and_its_ways_share_a_process(tmp_path: Path) -> None:
    both = pair(tmp_path / "m.gguf", tmp_path / "d.gguf")
    found = peer_contenders(["transformers", "llama.cpp"], both)
    assert [each.way for each in found] == ["plain", "assisted", "lookup", "plain", "lookup"]
    assert {each.layout for each in found} == {"transformers", "llama.cpp"}
    without = peer_contenders(["transformers"], pair(tmp_path / "m.gguf"))
    assert [each.way for each in without] == ["plain", "lookup"]


def test_transformers_writes_in_all_its_ways_what_it_writes_plainly(
    tiny_gguf: Callable[..., Path],
) -> None:
    """A way that is named and not taken would be measured as the plain one."""
    path = tiny_gguf()
    params = SamplingParams(max_tokens=6, seed=1, ignore_eos=True)
    found = {}
    with start_peer("transformers", pair(path, path), ()) as peer:
        for way in ("plain", "assisted", "lookup"):
            found[way] = peer.answer(way, [5, 6, 7, 5, 6, 7], params)
    assert {each.tokens for each in found.values()} == {6}
    assert len({each.answer for each in found.values()}) == 1
    assert all(each.seconds > 0 for each in found.values())


def test_a_peer_that_fails_says_why_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"no model")
    model = pair(tmp_path / "m.gguf")
    told = pytest.raises(SpecpipeError, match="the peer transformers failed: ")
    with told as caught, start_peer("transformers", model, ()):
        pass
    assert "\n" not in str(caught.value)


class Llama:
    """Plays llama_cpp.Llama: writes 3, 4, 5, ... and says what it was told."""

    told: ClassVar[list[Any]] = []

    def __init__(self, path: str, **settings: Any) -> None:
        self.told.append(settings)

    def reset(self) -> None:
        self.told.append("reset")

    def set_seed(self, seed: int) -> None:
        self.told.append(seed)

    def generate(self, tokens: list[int], **law: Any) -> Any:
        self.told.append((tokens, law))
        yield from range(3, 100)


def test_llama_cpp_is_asked_for_the_same_law_and_reads_each_prompt_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It keeps what a prompt has in common with the last one, and penalises repeats by default."""
    lookup = SimpleNamespace(LlamaPromptLookupDecoding=lambda num_pred_tokens: "look-up")
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_speculative", lookup)
    answer = peer_process.llama_cpp({"target": "m.gguf", "context": 64}, 3)
    plain, looking_up = Llama.told
    assert (plain["draft_model"], looking_up["draft_model"]) == (None, "look-up")
    assert (plain["n_threads"], plain["n_ctx"], plain["n_threads_batch"]) == (3, 64, 3)
    Llama.told.clear()
    asked = {"max_tokens": 4, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 1}
    found = answer("plain", (1, 2), asked | {"stop_token_ids": [6]})
    assert found["token_ids"] == [3, 4, 5, 6]
    assert 0 < found["first_token_s"] <= found["seconds"]
    reset, (tokens, law) = Llama.told
    assert (reset, tokens) == ("reset", [1, 2])
    assert (law["temp"], law["repeat_penalty"]) == (0.0, 1.0)
    assert json.dumps(found)
    assert answer("lookup", (1,), asked | {"stop_token_ids": [4]})["token_ids"] == [3, 4]
