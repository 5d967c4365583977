"""Bad input gets one line that names the value, exit code 2, and leaves nothing behind."""

import pytest
import torch

from tests.marked import nothing_left
from tests.programs import specpipe
from tests.unit.models.test_pt_checkpoint import Program

FLAGS = {
    "no such model": (["--target", "smolm2"], ["'smolm2'", "smollm2"]),
    "no such draft": (["--draft", "nowhere"], ["'nowhere'"]),
    "no such drafter": (["--drafter", "oracle"], ["'oracle'", "hybrid, model, ngram"]),
    "a drafter without its model": (
        ["--drafter", "hybrid", "--draft", "none"],
        ["'hybrid'", "ngram"],
    ),
    "no draft, and a drafter": (["--no-draft", "--drafter", "ngram"], ["--no-draft", "--drafter"]),
    "too little to remember": (["--remember", "9"], ["remember is 9", "1024"]),
    "no such GPU": (["--draft-gpu", "7"], ["7", "GPU"]),
    "a GPU below zero": (["--target-gpu=-1"], ["-1"]),
    "no such core": (["--draft-device", "cpu:977"], ["977"]),
    "one core for both": (
        ["--draft-device", "cpu:0", "--target-device", "cpu:0"],
        ["core 0", "cpu:0"],
    ),
    "no device": (["--target-device", "tpu:1"], ["tpu:1"]),
    "GPU and device": (["--draft-gpu", "0", "--draft-device", "cpu"], ["--draft-gpu"]),
    "negative temperature": (["--temperature=-0.5"], ["-0.5"]),
    "temperature that is no number": (["--temperature", "nan"], ["nan"]),
    "zero tokens": (["--max-tokens", "0"], ["max_tokens is 0"]),
    "negative seed": (["--seed=-1"], ["-1"]),
    "no such dtype": (["--dtype", "int3"], ["int3", "float16"]),
    "draft and no draft": (["--no-draft", "--draft", "smollm2"], ["--no-draft"]),
    "Ray Client": (["--address", "ray://127.0.0.1:10001"], ["ray://"]),
    "nobody at the address": (["--address", "127.0.0.1:1"], ["127.0.0.1:1"]),
    "no address": (["--address", "somewhere"], ["somewhere", "host:port"]),
    "a node without a name": (["--draft-node", ""], ["node is ''"]),
    "no such policy": (["--policy", "elastik"], ["'elastik'", "elastic"]),
    "policy without a length": (["--policy", "serial"], ["'serial'", "serial:4"]),
    "no such flag": (["--lookahaed", "3"], ["--lookahaed"]),
    "one file for record and trace": (
        ["--record", "a.json", "--trace", "./a.json"],
        ["record and trace", "a.json"],
    ),
    "two prompts": (["--prompt-file", "x.txt"], ["--prompt", "--prompt-file"]),
    "raw, and a system message": (["--raw", "--system", "Be brief."], ["--raw", "--system"]),
    "no such file": (["--config", "absent.toml"], ["absent.toml"]),
}


@pytest.fixture(autouse=True)
def whole(tmp_path):
    """Whatever is refused leaves nothing behind.

    `tmp_path` first, which is to be where it always is.
    """
    with nothing_left():
        yield


@pytest.fixture
def models(smollm2):
    return ("--models-dir", smollm2.folder.parent)


@pytest.mark.parametrize("case", FLAGS)
def test_a_bad_flag_is_named_with_its_remedy(case, models, refused):
    flags, fragments = FLAGS[case]
    line = refused("run", *models, "--prompt", "Hello", *flags)
    assert [fragment for fragment in fragments if fragment not in line] == [], line


def test_the_program_itself_refuses(models):
    """What is refused in the test's own process, and in the user's is a traceback."""
    result = specpipe("run", *models, "--prompt", "Hello", "--target", "smolm2")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("specpipe: there is no model 'smolm2'")
    assert result.stderr.count("\n") == 1


def test_an_unknown_setting_says_which_was_meant(tmp_path, refused):
    (tmp_path / "mine.toml").write_text("[pipeline]\nlookahed = 3\n")
    line = refused("run", "--config", tmp_path / "mine.toml", "--prompt", "Hello")
    assert "pipeline.lookahed" in line
    assert "mine.toml: did you mean lookahead?" in line


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused_on_both_ways_in(prompt, models, refused):
    assert "prompt is empty" in refused("run", *models, "--prompt", prompt)
    assert "prompt is empty" in refused("run", *models, stdin=prompt)


def test_a_prompt_file_that_cannot_be_read_is_refused(tmp_path, models, refused):
    run = ("run", *models, "--prompt-file")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty").write_bytes(b"")
    assert "absent: No such file" in refused(*run, tmp_path / "absent")
    assert f"{tmp_path}: Is a directory" in refused(*run, tmp_path)
    assert "UTF-8" in refused(*run, tmp_path / "latin")
    assert "prompt is empty" in refused(*run, tmp_path / "empty")
    assert "prompt is empty" in refused(*run, tmp_path / "empty", "--system", "Be brief.")


def test_a_prompt_beyond_the_context_is_refused_before_anything_starts(models, refused):
    assert "8192" in refused("run", *models, stdin="word " * 9000)


def test_a_truncated_model_is_refused(tmp_path, smollm2, refused):
    whole = smollm2.weights.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    run = ("run", "--no-draft", "--prompt", "Hello", "--target")
    assert "cut.gguf" in refused(*run, tmp_path / "cut.gguf")


def test_a_corrupt_model_is_refused(tmp_path, refused):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 4096)
    run = ("run", "--no-draft", "--prompt", "Hello", "--target")
    assert "bad.gguf" in refused(*run, tmp_path / "bad.gguf")


def test_a_checkpoint_that_holds_a_program_is_refused_and_the_program_not_run(tmp_path, refused):
    proof, path = tmp_path / "it ran", tmp_path / "main_model.pt"
    torch.save({"model_state_dict": {"rms_f.weight": Program(proof)}}, path)
    for command in (["run", "--no-draft", "--prompt", "Hello", "--target"], ["models", "show"]):
        (tmp_path / "main_config.json").write_text("{}")
        line = refused(*command, path)
        assert "main_model.pt" in line
        assert "more than tensors" in line
        (tmp_path / "main_config.json").unlink()
        assert "main_model.pt" in refused(*command, path)
    assert not proof.exists()


def test_a_folder_without_weights_is_refused(tmp_path, refused):
    (tmp_path / "hollow").mkdir()
    run = ("run", "--no-draft", "--prompt", "Hello", "--target")
    assert "hollow" in refused(*run, tmp_path / "hollow")


def test_vocabularies_that_differ_are_refused_with_the_first_difference(
    tmp_path, smollm2, models, refused
):
    other = smollm2.weights.read_bytes().replace(b"<|im_start|>", b"<|im_stort|>", 1)
    (tmp_path / "other.gguf").write_bytes(other)
    line = refused("run", *models, "--draft", tmp_path / "other.gguf", "--prompt", "Hello")
    assert "token 1 is '<|im_stort|>'" in line
    assert "in the target '<|im_start|>'" in line


def test_pruning_refuses_layers_that_are_not_there(models, refused):
    prune = ("models", "prune", "smollm2", "--out", "x", *models)
    assert "40" in refused(*prune, "--layers", "0-40")


def test_fetching_an_unknown_model_names_those_there_are(tmp_path, refused):
    line = refused("models", "fetch", "gpt-7", "--models-dir", tmp_path)
    assert "gpt-7" in line
    assert "smollm2" in line
