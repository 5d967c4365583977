"""The hub, played by a server on this machine, to which the real client talks."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants, hf_api

from specpipe.errors import UserError
from specpipe.models import download, store
from specpipe.models.download import KNOWN_MODELS, KNOWN_PAIRS, KnownModel
from specpipe.models.hub import is_hub_id
from specpipe.models.store import fetch, fetch_all, resolve
from specpipe.tokenizer import Tokenizer
from tests.unit.models.test_pt_checkpoint import save_tokenizer

COMMIT = "a" * 40
WEIGHTS = b"GGUF, more or less" * 1000


class Hub:
    """Repositories by name: file name -> content.

    Attributes:
        asked: the paths of all requests.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.asked.append(request.path)
        path = request.path.partition("?")[0].strip("/")
        is_question = path.startswith("api/models/")
        owner, name, *rest = path.removeprefix("api/models/").split("/")
        files = self.repositories.get(f"{owner}/{name}")
        if files is None:
            self._say(request, 401, b"", {"X-Error-Code": "RepoNotFound"})
        elif is_question and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": _hash(content)}
                for path, content in files.items()
            ]
            self._say(request, 200, json.dumps(tree).encode(), {})
        elif is_question:
            siblings = [{"rfilename": path} for path in files]
            info = {"id": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings}
            self._say(request, 200, json.dumps(info).encode(), {})
        elif (file := "/".join(rest[2:])) in files:
            content = files[file]
            headers = {"ETag": f'"{_hash(content)}"', "X-Repo-Commit": COMMIT}
            self._say(request, 200, content, headers)
        else:
            self._say(request, 404, b"", {"X-Error-Code": "EntryNotFound"})

    def _say(self, request, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            request.send_header(key, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        point_client_to(address, tmp_path, monkeypatch)
        yield hub
        server.shutdown()


def point_client_to(address: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", address)


@pytest.fixture
def toy(monkeypatch) -> KnownModel:
    known = KnownModel("toys/Toy-GGUF", "toy.gguf", len(WEIGHTS), _hash(WEIGHTS), "MIT", "a test")
    monkeypatch.setitem(store.KNOWN_MODELS, "toy", known)
    return known


def test_fetch_installs_the_pinned_bytes(hub, toy, tmp_path) -> None:
    hub.repositories["toys/Toy-GGUF"] = {"toy.gguf": WEIGHTS, "pickled.bin": b"!"}
    model = fetch("toy", tmp_path / "models", lambda _: None)
    assert model.weights.read_bytes() == WEIGHTS
    assert {path.name for path in model.folder.iterdir()} == {"toy.gguf", "source.json"}
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"toy"}
    hub.asked.clear()
    assert fetch("toy", tmp_path / "models", lambda _: None) == model
    assert hub.asked == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (WEIGHTS[::-1], "SHA-256 is not the one on record"),
        (WEIGHTS + b"!", f"it has {len(WEIGHTS) + 1} bytes, not {len(WEIGHTS)}"),
        (b"", "it has 0 bytes"),
    ],
)
def test_other_bytes_are_refused_and_leave_nothing(hub, toy, tmp_path, content, what) -> None:
    """An owner, or whoever took over the account, may replace a file at any time."""
    hub.repositories["toys/Toy-GGUF"] = {"toy.gguf": content}
    with pytest.raises(UserError, match=what) as raised:
        fetch("toy", tmp_path / "models", lambda _: None)
    assert "toys/Toy-GGUF" in str(raised.value)
    assert list((tmp_path / "models").iterdir()) == []


def test_a_pair_has_one_name(hub, toy, tmp_path, monkeypatch) -> None:
    hub.repositories["toys/Toy-GGUF"] = {"toy.gguf": WEIGHTS}
    monkeypatch.setitem(store.KNOWN_MODELS, "toy-2", toy)
    monkeypatch.setitem(download.KNOWN_PAIRS, "toys", ("toy", "toy-2"))
    models = fetch_all("toys", tmp_path / "models", lambda _: None)
    assert [model.name for model in models] == ["toy", "toy-2"]
    assert [model.name for model in fetch_all("toy", tmp_path / "models", lambda _: None)] == [
        "toy"
    ]


def test_the_natural_pair_is_on_record() -> None:
    """A hash that changes with an edit would let anything in."""
    target, draft = (KNOWN_MODELS[name] for name in KNOWN_PAIRS["qwen2.5-coder"])
    assert target.origin == "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF"
    assert target.sha256.startswith("cc324af0")
    assert draft.origin == "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"
    assert draft.sha256.startswith("1d961463")
    assert target.on_hub
    assert draft.on_hub


def test_a_hub_id_is_a_model_once_in_the_cache_also_without_a_network(
    hub, tmp_path, monkeypatch
) -> None:
    """Only weights and settings are fetched; code, pickles and doubled weights stay there."""
    wanted = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "generation_config.json": b"{}",
        "chat_template.jinja": b"",
    }
    unwanted = ("pytorch_model.bin", "own.py", "original/model.safetensors", "README.md")
    hub.repositories["toys/Toy"] = wanted | dict.fromkeys(unwanted, b"!")
    model = resolve("toys/Toy", tmp_path)
    assert (model.name, model.folder) == ("Toy", model.weights)
    assert {path.name for path in model.weights.iterdir()} == set(wanted)
    assert (model.weights / "model.safetensors").read_bytes() == b"weights"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("toys/Toy", tmp_path) == model


def test_one_file_of_a_repository_can_be_named(hub, tmp_path) -> None:
    hub.repositories["toys/Toy-GGUF"] = {"a.gguf": b"a", "b.gguf": b"b"}
    model = resolve("toys/Toy-GGUF/b.gguf", tmp_path)
    assert model.weights.read_bytes() == b"b"
    with pytest.raises(UserError, match=r"no weights as safetensors.*toys/Toy-GGUF/FILE.gguf"):
        resolve("toys/Toy-GGUF", tmp_path)
    with pytest.raises(UserError, match="it has no such file"):
        resolve("toys/Toy-GGUF/c.gguf", tmp_path)


def test_a_repository_that_is_not_there_is_named(hub, tmp_path) -> None:
    with pytest.raises(
        UserError,
        match=r"no model toys/None on this machine.*check the name",
    ):
        resolve("toys/None", tmp_path)


@pytest.mark.slow
def test_without_a_network_there_is_one_clear_line(tmp_path, monkeypatch, toy) -> None:
    point_client_to("http://127.0.0.1:9", tmp_path, monkeypatch)
    for ask in (
        lambda: resolve("toys/Toy", tmp_path),
        lambda: fetch("toy", tmp_path / "models", lambda _: None),
    ):
        with pytest.raises(UserError, match=r"from the hub .*: check the network") as raised:
            ask()
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("Qwen/Qwen2.5-0.5B", True),
        ("a/b/c.gguf", True),
        ("a/b/c.bin", False),
        ("a/b/c/d.gguf", False),
        ("../b", False),
        ("a/..", False),
        ("/a/b", False),
        ("a", False),
        ("a/b\n", False),
        ("ä/b", False),
    ],
)
def test_paths_are_not_taken_for_ids(name, is_one) -> None:
    """A mistyped path must not become a question to the network."""
    assert is_hub_id(name) is is_one


def test_gpt2s_tokenizer_comes_from_the_hub_where_a_folder_has_none(hub, tmp_path) -> None:
    """Checkpoints come without; nothing else of that model is wanted."""
    (tmp_path / "gpt2").mkdir()
    save_tokenizer(tmp_path / "gpt2")
    content = (tmp_path / "gpt2" / "tokenizer.json").read_bytes()
    hub.repositories["openai-community/gpt2"] = {"tokenizer.json": content, "model.bin": b"!"}
    tokenizer = Tokenizer.from_gpt2(tmp_path)
    assert (tokenizer.used_size, tokenizer.stop_token_ids) == (257, (256,))
    assert {path.rpartition("/")[2] for path in hub.asked} == {"tokenizer.json"}
    hub.repositories.clear()
    assert Tokenizer.from_gpt2(tmp_path).used_size == 257, "it was kept"
    (tmp_path / "tokenizer.json").write_bytes(content.replace(b"<|endoftext|>", b"<|end|>"))
    assert Tokenizer.from_gpt2(tmp_path).stop_token_ids == (), "the folder's own comes first"


def test_without_gpt2s_tokenizer_the_line_says_where_to_put_it(hub, tmp_path) -> None:
    with pytest.raises(UserError, match=r"put GPT-2's tokenizer.json there$") as error:
        Tokenizer.from_gpt2(tmp_path)
    missing = f"{tmp_path / 'tokenizer.json'} is missing, and we cannot fetch openai-community/gpt2"
    assert str(error.value).startswith(missing)
    assert "\n" not in str(error.value)
