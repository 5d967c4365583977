"""Bad input gets one line that names the value, exit code 2, and leaves nothing behind."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import torch

from tests import refusals
from tests.unit.models.test_pt_checkpoint import Program

SPECPIPE = [sys.executable, "-c", "from specpipe.cli.main import main; main()"]


def specpipe(*args, stdin="", cwd=None, **env):
    return subprocess.run(
        [*SPECPIPE, *args],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | env,
        timeout=60,
        check=False,
    )


def traces():
    """What a run could leave behind: Ray's processes, our socket folders."""
    names = {"raylet", "gcs_server"}
    processes = {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] in names}
    return processes, set(Path(tempfile.gettempdir()).glob("specpipe-*"))


def assert_refused(result, *fragments):
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    refusals.note(lines[0])
    for fragment in fragments:
        assert fragment in lines[0]


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


@pytest.mark.parametrize("case", FLAGS)
def test_a_bad_flag_is_named_with_its_remedy(case, smollm2):
    flags, fragments = FLAGS[case]
    before = traces()
    result = specpipe("run", "--models-dir", smollm2.folder.parent, "--prompt", "Hello", *flags)
    assert_refused(result, *fragments)
    assert traces() == before


def test_an_unknown_setting_says_which_was_meant(tmp_path, smollm2):
    (tmp_path / "mine.toml").write_text("[pipeline]\nlookahed = 3\n")
    result = specpipe("run", "--config", tmp_path / "mine.toml", "--prompt", "Hello")
    assert_refused(result, "lookahed", "mine.toml", "lookahead")


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused_on_both_ways_in(prompt, smollm2):
    models = ("--models-dir", smollm2.folder.parent)
    assert_refused(specpipe("run", *models, "--prompt", prompt), "prompt is empty")
    assert_refused(specpipe("run", *models, stdin=prompt), "prompt is empty")


def test_a_prompt_file_that_cannot_be_read_is_refused(tmp_path, smollm2):
    run = ("run", "--models-dir", smollm2.folder.parent, "--prompt-file")
    (tmp_path / "latin").write_bytes("é".encode("latin-1"))
    (tmp_path / "empty").write_bytes(b"")
    assert_refused(specpipe(*run, tmp_path / "absent"), "absent", "No such file")
    assert_refused(specpipe(*run, tmp_path), str(tmp_path), "directory")
    assert_refused(specpipe(*run, tmp_path / "latin"), "latin", "UTF-8")
    assert_refused(specpipe(*run, tmp_path / "empty"), "prompt is empty")
    assert_refused(specpipe(*run, tmp_path / "empty", "--system", "Be brief."), "prompt is empty")


def test_a_prompt_beyond_the_context_is_refused_before_anything_starts(smollm2):
    result = specpipe("run", "--models-dir", smollm2.folder.parent, stdin="word " * 9000)
    assert_refused(result, "8192")


def test_a_truncated_model_is_refused(tmp_path, smollm2):
    whole = smollm2.weights.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    result = specpipe("run", "--no-draft", "--target", tmp_path / "cut.gguf", "--prompt", "Hello")
    assert_refused(result, "cut.gguf")


def test_a_corrupt_model_is_refused(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 4096)
    result = specpipe("run", "--no-draft", "--target", tmp_path / "bad.gguf", "--prompt", "Hello")
    assert_refused(result, "bad.gguf")


def test_a_checkpoint_that_holds_a_program_is_refused_and_the_program_not_run(tmp_path):
    proof, path = tmp_path / "it ran", tmp_path / "main_model.pt"
    torch.save({"model_state_dict": {"rms_f.weight": Program(proof)}}, path)
    for command in (["run", "--no-draft", "--target", path], ["models", "show", path]):
        (tmp_path / "main_config.json").write_text("{}")
        assert_refused(specpipe(*command), "main_model.pt", "more than tensors")
        (tmp_path / "main_config.json").unlink()
        assert_refused(specpipe(*command), "main_model.pt")
    assert not proof.exists()


def test_a_folder_without_weights_is_refused(tmp_path):
    (tmp_path / "hollow").mkdir()
    result = specpipe("run", "--no-draft", "--target", tmp_path / "hollow", "--prompt", "Hello")
    assert_refused(result, "hollow")


def test_vocabularies_that_differ_are_refused_with_the_first_difference(tmp_path, smollm2):
    other = smollm2.weights.read_bytes().replace(b"<|im_start|>", b"<|im_stort|>", 1)
    (tmp_path / "other.gguf").write_bytes(other)
    models = ("--models-dir", smollm2.folder.parent)
    result = specpipe("run", *models, "--draft", tmp_path / "other.gguf", "--prompt", "Hello")
    assert_refused(result, "<|im_start|>", "<|im_stort|>", "1")


def test_pruning_refuses_layers_that_are_not_there(smollm2):
    models = ("--models-dir", smollm2.folder.parent)
    result = specpipe("models", "prune", "smollm2", "--layers", "0-40", "--out", "x", *models)
    assert_refused(result, "40")


def test_fetching_an_unknown_model_names_those_there_are(tmp_path):
    result = specpipe("models", "fetch", "gpt-7", "--models-dir", tmp_path)
    assert_refused(result, "gpt-7", "smollm2")
