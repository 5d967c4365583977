"""What the target writes for a draft to learn from, and the laws that are kept with it."""

import contextlib

import numpy as np
import pytest
import torch

from specpipe.errors import UserError
from specpipe.models.cuda.decoder import CudaDecoder
from specpipe.models.interface import Feed
from specpipe.models.loader import load_model
from specpipe.models.source import open_model
from specpipe.models.weights import DecoderWeights
from specpipe.pair import read_model
from specpipe.training import gathering, writing
from specpipe.training.frame import Frame
from specpipe.training.gathering import gather
from specpipe.training.scripts import Director, Script
from specpipe.training.shards import LAW_TOKENS, read_shard, shard_seconds, write_shard
from specpipe.training.voice import voice_of
from specpipe.training.writing import write
from tests.unit.training.chat_model import make_chat_model

LONGEST = 200


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_chat_model(tmp_path_factory.mktemp("models") / "target")


@pytest.fixture(scope="module")
def tokenizer(target):
    return read_model(target.weights)[0]


@pytest.fixture(scope="module")
def written(target, tokenizer):
    """Conversations of all kinds, by the temperature of their replies."""
    frame = Frame.of(tokenizer)
    model = load_model(target.weights, dtype="float32", num_slots=5, context_length=LONGEST)
    ask = tuple(tokenizer.encode_chat([{"role": "user", "content": "Why?"}]))
    scripts = [
        Script(beginning, own_turn, temperature, replies, seed)
        for seed, (beginning, own_turn) in enumerate([(frame.header, True), (ask, False)])
        for temperature in (0.0, 1.0)
        for replies in (1, 2)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "LONGEST_TURN", 20)
        patch.setattr(writing, "LONGEST_REPLY", 60)
        return list(write(model, frame, scripts, LONGEST))


def of_a_gpu(target, device, **sizes) -> CudaDecoder:
    """The target as GPUs have it, on any device."""
    source = open_model(target.weights)
    config = source.config.narrowed(LONGEST, None, target.weights)
    return CudaDecoder(
        config, DecoderWeights(source), dtype="float32", device=torch.device(device), **sizes
    )


def test_the_frame_is_what_the_template_puts_around_a_turn(tokenizer) -> None:
    """A header with a part of a turn in it, or a turn that is never closed, teaches nonsense."""
    frame = Frame.of(tokenizer)
    text = [tokenizer.tokens[token] for token in frame.header]
    assert text[0] == "<|im_start|>"
    assert tokenizer.decode(frame.header) == "user\n"
    assert tokenizer.tokens[frame.footer[0]] == "<|im_end|>"
    assert tokenizer.decode(frame.footer) == "\nassistant\n"
    assert tokenizer.decode(frame.between) == "\nuser\n"
    assert frame.between[0] in frame.ends
    whole = tokenizer.encode_chat([{"role": "user", "content": "Why?"}])
    assert whole == [*frame.header, *tokenizer.encode("Why?", add_special=False), *frame.footer]


def test_a_model_without_a_template_just_goes_on(tmp_path) -> None:
    """Base models have drafts too: nothing is put between what they write."""
    model = make_chat_model(tmp_path / "base", template=None)
    frame = Frame.of(read_model(model.weights)[0])
    assert frame.header == (257,)
    assert not frame.footer
    assert not frame.between


def test_laws_are_those_of_the_tokens_that_they_stand_with(target, written) -> None:
    """Laws shifted by one teach the draft to say each token twice; nothing would fail."""
    model = load_model(target.weights, dtype="float32", context_length=LONGEST)
    assert len(written) == 8
    for conversation in written:
        slot = model.open()
        tokens = conversation.tokens.tolist()
        logits = model.forward(slot, tokens, len(tokens))
        model.close(slot)
        logprobs = logits - logits.max(-1, keepdims=True)
        logprobs -= np.log(np.exp(logprobs).sum(-1, keepdims=True))
        places = np.flatnonzero(conversation.written)
        assert len(places) == len(conversation.law_ids) == len(conversation.law_logprobs)
        assert len(places)
        for place, ids, kept in zip(
            places, conversation.law_ids, conversation.law_logprobs, strict=True
        ):
            law = logprobs[place - 1]
            assert set(ids) == set(np.argsort(-law, kind="stable")[:LAW_TOKENS])
            np.testing.assert_allclose(kept.astype(np.float32), law[ids], atol=0.01)
            assert (np.diff(kept.astype(np.float32)) <= 0).all(), "the likeliest come first"


def test_replies_at_temperature_0_are_the_likeliest_tokens(written) -> None:
    """A reply drawn at another temperature is not what people will ask for."""
    likeliest = []
    for conversation in written:
        reply = np.flatnonzero(conversation.written) >= conversation.reply
        said = conversation.tokens[conversation.written][reply]
        likeliest.append((said == conversation.law_ids[reply, 0]).mean())
    assert sorted(likeliest)[-4:] == [1.0] * 4
    assert max(sorted(likeliest)[:4]) < 0.9


def test_conversations_end_where_they_should(written) -> None:
    """No longer than the context, and none broken off before its last reply has begun."""
    for conversation in written:
        assert len(conversation.tokens) <= LONGEST
        assert len(conversation.written) == len(conversation.tokens)
        assert conversation.reply <= len(conversation.tokens)
        assert conversation.written.sum() <= 2 * (20 + 60)
        assert not conversation.written[0], "the beginning is given"


def test_the_same_scripts_give_the_same_conversations(
    target, tokenizer, written, monkeypatch
) -> None:
    """What depends on who sat beside whom in a pass could not be made again."""
    frame = Frame.of(tokenizer)
    model = load_model(target.weights, dtype="float32", context_length=LONGEST)
    monkeypatch.setattr(writing, "LONGEST_TURN", 20)
    monkeypatch.setattr(writing, "LONGEST_REPLY", 60)
    (alone,) = write(model, frame, [Script(frame.header, True, 1.0, 1, 0)], LONGEST)
    same = [each for each in written if np.array_equal(each.tokens, alone.tokens)]
    assert len(same) == 1
    np.testing.assert_array_equal(same[0].law_ids, alone.law_ids)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_two_tables_write_what_one_writes(target, tokenizer, device, monkeypatch) -> None:
    """A word that was said at one table and written down at the other would belong to no text."""
    monkeypatch.setattr(writing, "LONGEST_TURN", 10)
    monkeypatch.setattr(writing, "LONGEST_REPLY", 20)
    frame = Frame.of(tokenizer)
    scripts = [Script(frame.header, True, seed % 2 / 2, 1 + seed % 2, seed) for seed in range(9)]
    two = of_a_gpu(target, device, num_slots=5, rows=5)
    one = load_model(target.weights, dtype="float32", num_slots=5, context_length=LONGEST)
    texts = [
        sorted(tuple(each.tokens.tolist()) for each in write(model, frame, scripts, LONGEST))
        for model in (two, one)
    ]
    assert len(set(texts[1])) == len(scripts)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def test_words_drawn_on_a_gpu_are_those_drawn_on_a_cpu(target, device) -> None:
    """Laws of the wrong rows, or draws from another law, would teach the draft another target."""
    model = of_a_gpu(target, device, num_slots=3, rows=7)
    judge = load_model(target.weights, dtype="float32", num_slots=3, context_length=LONGEST)
    texts, heat, chances = [[5], [*range(9)], [3, 1, 4]], [0.0, 1.0, 0.5], [0.9, 0.6, 0.999]
    said = [
        voice_of(each)([Feed(each.open(), text, 1) for text in texts], heat, chances)()
        for each in (model, judge)
    ]
    for found, expected in zip(*said, strict=True):
        assert found.token == expected.token
        np.testing.assert_array_equal(found.law_ids, expected.law_ids)
        np.testing.assert_allclose(found.law_logprobs, expected.law_logprobs, atol=1e-3)
    assert said[0][1].token != said[0][1].law_ids[0], "it is drawn"


def test_words_are_drawn_by_the_law(target) -> None:
    """Equal steps of chance give each token its share, those that no law keeps included."""
    model = load_model(target.weights, dtype="float32", num_slots=1, context_length=LONGEST)
    logits = model.forward(model.open(), [5], 1)[0].astype(np.float64)
    law = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    model.close(0)
    counts, draws = np.zeros(len(law)), 4000
    for draw in range(draws):
        slot = model.open()
        (word,) = voice_of(model)([Feed(slot, [5], 1)], [1.0], [(draw + 0.5) / draws])()
        counts[word.token] += 1
        model.close(slot)
    np.testing.assert_allclose(counts / draws, law, atol=2 / draws + 1e-5)
    assert counts[np.argsort(-law)[LAW_TOKENS:]].sum() > 0


def test_a_director_asks_about_what_was_written_before(tokenizer) -> None:
    """Without long texts in prompts a draft learns neither to copy nor to read far back."""
    director = Director(tokenizer, Frame.of(tokenizer))
    assert director.scripts(3, 20) == director.scripts(3, 20)
    assert all(script.user_writes for script in director.scripts(1, 40))
    text = "Much was said of the sea, and of ships that sail on it. " * 5
    director.learn("What is the sea?", text)
    whole = [script for script in director.scripts(1, 40) if not script.user_writes]
    assert whole
    assert any(text.strip()[:50] in tokenizer.decode(script.beginning) for script in whole)


def test_prompts_of_ones_own_are_all_that_is_asked(tokenizer) -> None:
    """A draft for one's own traffic must not be taught small talk."""
    prompts = ["Sort these: b a", "Sort these: d c"]
    scripts = Director(tokenizer, Frame.of(tokenizer), prompts).scripts(0, 30)
    asked = {tokenizer.decode(script.beginning) for script in scripts}
    assert asked == {f"user\n{prompt}\nassistant\n" for prompt in prompts}
    assert not any(script.user_writes for script in scripts)


def test_a_shard_reads_as_it_was_written(tmp_path, written) -> None:
    """Ragged arrays cut at the wrong places give each conversation its neighbour's laws."""
    path = tmp_path / "0.safetensors"
    write_shard(path, written, 12.5)
    assert shard_seconds(path) == 12.5
    for ours, theirs in zip(written, read_shard(path), strict=True):
        for name in ("tokens", "written", "law_ids", "law_logprobs"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
        assert ours.reply == theirs.reply
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="is no shard"):
        read_shard(path)


def test_an_interrupted_stage_goes_on_after_its_last_shard(
    target, tokenizer, tmp_path, monkeypatch
) -> None:
    """Hours of writing must not be begun again, nor be done twice."""
    monkeypatch.setitem(gathering._CONVERSATIONS, "cpu", 8)
    monkeypatch.setattr(gathering, "LONGEST", 100)
    seen: list[str] = []

    def gathered(folder, stop=None):
        def told(share, line):
            seen.append(line)
            assert 0 <= share <= 1
            if line == stop:
                raise KeyboardInterrupt

        return gather(target, tokenizer, folder, seconds=1e-6, threads=1, told=told)

    with pytest.raises(KeyboardInterrupt):
        gathered(tmp_path / "broken", stop="conversation 11")
    first = (tmp_path / "broken" / "00000.safetensors").read_bytes()
    seen.clear()
    assert len(gathered(tmp_path / "broken")) == 2
    assert seen[0] == "conversation 9"
    assert (tmp_path / "broken" / "00000.safetensors").read_bytes() == first
    gathered(tmp_path / "whole")
    for name in ("00000", "00001"):
        one, other = (
            read_shard(tmp_path / folder / f"{name}.safetensors") for folder in ("broken", "whole")
        )
        for ours, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(ours.tokens, theirs.tokens)
    assert not list(tmp_path.rglob("*.partial"))


def test_a_slow_target_has_its_shards_cut_short(target, tokenizer, tmp_path, monkeypatch) -> None:
    """A shard of hundreds takes a large target on two cores longer than half an hour was given."""
    monkeypatch.setitem(gathering._CONVERSATIONS, "cpu", 24)
    monkeypatch.setattr(gathering, "_LEAST_WRITTEN", 5)
    monkeypatch.setattr(gathering, "LONGEST", 60)
    folder = tmp_path / "data"
    shards = gather(target, tokenizer, folder, seconds=1e-6, threads=1, told=lambda *_: None)
    assert [len(read_shard(path)) for path in shards] == [5, 5]


@pytest.mark.parametrize(("seconds", "more"), [(24.0, False), (26.0, True)])
def test_a_shard_is_begun_if_half_of_it_fits(
    target, tokenizer, tmp_path, written, seconds, more
) -> None:
    """A target that takes ten minutes for each goes past its time by as much."""
    for number in range(2):
        write_shard(tmp_path / f"{number:05}.safetensors", written, 10.0)
    begun: list[str] = []

    def told(share: float, line: str) -> None:
        begun.append(line)
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        gather(target, tokenizer, tmp_path, seconds=seconds, threads=1, told=told)
    assert bool(begun) is more


def test_prompts_without_room_for_a_reply_are_refused(target, tokenizer, tmp_path) -> None:
    """Else a stage ends, after an hour, in an error about a cache."""
    with pytest.raises(UserError, match=r"prompt 2 has .* tokens, and there is room for 256"):
        gather(
            target, tokenizer, tmp_path, seconds=1, threads=1, prompts=["a", "b" * 400],
            told=lambda share, line: None,
        )  # fmt: skip
