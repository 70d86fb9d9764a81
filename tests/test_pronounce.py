"""docs/pronounce.py: its parts against cases made by hand, and the script as a user runs it."""

import itertools
import re
import subprocess
import sys

import numpy as np
import pronounce
import pytest
from pronounce import END, LETTERS, PHONEMES, BeamSearch, pad

keras = pronounce.keras
pronounce.MODELS = 2  # a third less to compile
WORDS = ["a", "it's", "thought", "attention", "antidisestablishmentarianism", "zoo", "queue"]


@pytest.fixture(scope="module")
def dictionary():
    return pronounce.load_words(10**6)


@pytest.fixture(scope="module")
def model():
    """Its random weights, biases too, make it sure of what it says."""
    model, rng = pronounce.make_model(), np.random.default_rng(0)
    model.set_weights([rng.normal(scale=0.2, size=w.shape) for w in model.get_weights()])
    return model


# The data


def test_every_tenth_word_is_held_out_and_in_every_run_the_same(dictionary):
    learn, test = dictionary
    assert not learn.keys() & test.keys()
    assert 0.099 < len(test) / (len(learn) + len(test)) < 0.102
    # The CRC-32 of a word is the same everywhere: these were worked out with zlib.
    assert {"water", "music", "question", "table", *pronounce.PICTURE} < test.keys()
    assert {"house", "school", "paper", "river"} < learn.keys()
    some = pronounce.load_words(1000)
    assert sum(map(len, some)) == 1000
    assert all(few.items() <= all_.items() for few, all_ in zip(some, dictionary))
    assert len({word[0] for word in some[0]}) > 20  # from the whole alphabet


def test_words_are_said_as_in_the_dictionary_but_for_stress(dictionary):
    words = dictionary[0] | dictionary[1]
    assert words["thought"] == [("TH", "AO", "T")]
    assert words["read"] == [("R", "EH", "D"), ("R", "IY", "D")]  # REH1D and RIY1D
    assert words["youth's"] == [("Y", "UW", "TH", "S")]
    assert not words.keys() & {"c-span", "a.m.", "antidisestablishmentarianism"}
    for word, variants in words.items():
        assert len(set(variants)) == len(variants) > 0  # those that differ in stress alone are one
        assert set(itertools.chain(*variants)) <= set(PHONEMES)
        assert max(len(word), *(len(variant) + 1 for variant in variants)) <= pronounce.LENGTHS[-1]


def test_an_epoch_has_each_word_once_but_to_fill_up_and_few_shapes():
    words = {"ab": [("AE", "B"), ("AH", "B")], "abc": [("AE",) * 7], "a" * 20: [("AH",)] * 3}
    words |= {first + second: [("AH",)] for first in "abcdefghijkl" for second in "mnopqrstuvwxyz"}
    rng = np.random.default_rng(0)
    epochs = [pronounce.draw_batches(words, rng) for _ in range(2)]
    for batches in epochs:
        seen = []
        for letters, phonemes in batches:
            assert letters.shape == phonemes.shape == (pronounce.BATCH, letters.shape[1])
            assert letters.shape[1] in pronounce.LENGTHS
            for x, y in zip(letters, phonemes):
                assert y[-1] == END
                word = "".join(LETTERS[i - 1] for i in x[x > 0])
                assert pronounce.read([y]) == [words[word][0]]  # the first pronunciation alone
                seen.append(word)
        assert set(seen) == set(words)
        assert len(batches) == 2 + -(-(len(words) - 2) // pronounce.BATCH)
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(*epochs))  # drawn anew


# What is counted


def test_error_rates_are_those_against_the_nearest_pronunciation():
    right = {
        "read": [("R", "EH", "D"), ("R", "IY", "D")],
        "a": [("AH",), ("AH", "B", "K", "D")],
        "t": [("T",)],
    }
    spoken = {"read": ("R", "IY", "D"), "a": ("AH",), "t": ("T",)}
    assert pronounce.error_rates(spoken, right) == (0, 0)
    # One of three words wrong, two errors in 3 + 4 + 1 phonemes of the nearest pronunciations
    spoken["a"] = ("AH", "B", "T", "D", "D")
    assert pronounce.error_rates(spoken, right) == pytest.approx((25, 100 / 3))
    assert pronounce.error_rates(dict.fromkeys(right, ()), right) == pytest.approx((100, 100))


def test_reading_ends_at_the_first_end():
    ids = np.array([[1, 2, 0, 3], [0, 1, 1, 1], [39, 38, 37, 36]])
    assert pronounce.read(ids) == [tuple(PHONEMES[:2]), (), tuple(PHONEMES[:-5:-1])]


# The models and the search


def log_probability(model, letters, ids):
    """The sum of log p of ids (B, T) up to the first END, in float64."""
    p = np.mean(model.predict([letters, ids], batch_size=2000, verbose=0), axis=0)
    chosen = np.log(np.take_along_axis(p.astype("float64"), ids[..., None], -1))[..., 0]
    ended = np.cumsum(ids == END, axis=-1) - (ids == END) > 0
    return np.where(ended, 0, chosen).sum(axis=-1)


def test_a_beam_of_1_is_greedy_and_a_beam_of_5_finds_more(model, dictionary, monkeypatch):
    monkeypatch.setattr(pronounce, "STEPS", 12)
    letters = pad([*WORDS, *list(dictionary[1])[:43]], LETTERS, 28)
    one, five = (BeamSearch(model, k).predict(letters, verbose=0) for k in (1, 5))
    greedy = np.zeros((len(letters), 12), "int32")
    for t in range(12):
        p = np.mean(model.predict([letters, greedy], batch_size=50, verbose=0), axis=0)
        greedy[:, t] = p[:, t].argmax(axis=-1)
    greedy *= np.cumprod(greedy != END, axis=1)
    np.testing.assert_array_equal(one["ids"], greedy)
    for found in one, five:
        expected = log_probability(model, letters, found["ids"])
        np.testing.assert_allclose(found["log_p"], expected, atol=1e-3)
    # A beam can lose what is the best in the end, but seldom, even with random weights.
    more = five["log_p"] - one["log_p"]
    assert np.mean(more > -1e-4) > 0.9 and np.mean(more) > 1


def test_a_beam_of_all_symbols_is_an_exhaustive_search(model, monkeypatch):
    monkeypatch.setattr(pronounce, "STEPS", 2)
    letters, search = pad(WORDS[:4], LETTERS, 12), BeamSearch(model, pronounce.SYMBOLS)
    for decoder in search.decoders:  # END comes once, for two others: not always the best
        decoder.cell.b_o.assign(decoder.cell.b_o - 2 * np.eye(pronounce.SYMBOLS)[END])
    found = search.predict(letters, verbose=0)
    assert 0 < np.count_nonzero(found["ids"] == END) < 8
    every = np.array(list(itertools.product(range(pronounce.SYMBOLS), repeat=2)))
    every = every[(every[:, 0] != END) | (every[:, 1] == END)]
    p = log_probability(model, np.repeat(letters, len(every), axis=0), np.tile(every, (4, 1)))
    p = p.reshape(4, -1)
    np.testing.assert_array_equal(found["ids"], every[p.argmax(axis=1)])
    np.testing.assert_allclose(found["log_p"], p.max(axis=1), atol=1e-4)


def test_padding_changes_nothing(model):
    phonemes = pad([("AH",) * 5] * len(WORDS), PHONEMES, 6)
    for short, long in zip(*(model([pad(WORDS, LETTERS, n), phonemes]) for n in (28, 33))):
        np.testing.assert_allclose(short, long, atol=1e-5)


def test_without_attention_a_decoder_sees_one_vector_of_the_whole_word(model):
    keras.utils.set_random_seed(0)
    without = pronounce.make_model(attention=False)
    assert without.count_params() == model.count_params()
    encoder = without.get_layer("encoder")
    a, b = (encoder(pad([word], LETTERS, 9))[-2] for word in ("thought", "thoughy"))
    assert a.shape == (1, 1, a.shape[-1])
    assert np.abs(a - b).max() > 1e-4  # the last letter arrives


# The script


def test_it_learns_is_kept_and_says(tmp_path, monkeypatch, run_main):
    monkeypatch.setattr(pronounce, "LENGTHS", (22,))  # what takes the time is compiling
    folder, picture = tmp_path / "new", tmp_path / "new" / "pronounce.png"
    flags = ["--n-words", "300", "--epochs", "1", "--output", folder]
    status, stdout, stderr = run_main(pronounce, *flags)
    assert status == 0, stderr
    for line in (
        r"2\d\d words to learn, \d\d to test, [\d,]+ weights",
        r"beam of 1 +\d+\.\d\d +\d+\.\d\d",
        r"beam of 5 +\d+\.\d\d +\d+\.\d\d",
        r" 1 to 22 +\d+ +\d+\.\d\d",
    ):
        assert re.search(f"^{line}$", stdout, re.MULTILINE), line
    assert len(re.findall(r"^[a-z']+ .*right: [A-Z]+", stdout, re.MULTILINE)) == 10
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()

    say = ["--say", "Attention", "zyzzyva"]
    status, stdout, stderr = run_main(pronounce, *say, "--output", folder)
    assert status == 0, stderr
    model = keras.saving.load_model(folder / "pronounce.keras", compile=False)
    words = ["attention", "zyzzyva"]
    said = pronounce.pronounce(BeamSearch(model, 5), words)
    assert stdout.splitlines()[:2] == [" ".join([word, *said[word]]) for word in words]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_it_runs_from_another_folder(tmp_path):
    subprocess.run([sys.executable, pronounce.__file__, "--help"], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["--n-words", "99"], "argument --n-words: must be at least 100, got 99"),
        (["--say"], "argument --say: expected at least one argument"),
        (["--say", "word", "naïve"], "A word must be made of a to z and ', got 'naïve'"),
        (["--say", "word"], "There is no {output}/pronounce.keras yet: learn first, without --say"),
    ],
)
def test_bad_input_ends_in_one_line(flags, message, tmp_path, run_main):
    status, stdout, stderr = run_main(pronounce, *flags, "--output", tmp_path)
    assert (status, stdout) == (2, "")
    assert message.format(output=tmp_path) in stderr.splitlines()[-1]
