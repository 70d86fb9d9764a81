"""docs/pronounce.py: its parts against cases made by hand, and the script as a user runs it."""

import importlib.util
import itertools
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).parent.parent / "docs" / "pronounce.py"
spec = importlib.util.spec_from_file_location("pronounce", SCRIPT)
pronounce = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pronounce)
keras = pronounce.keras
pronounce.MODELS = 2  # a third less to compile


def random_model(scale, seed=0):
    """A model whose random weights, biases too, make it sure of what it says."""
    rng = np.random.default_rng(seed)
    model = pronounce.make_model()
    model.set_weights([rng.normal(scale=scale, size=w.shape) for w in model.get_weights()])
    return model


@pytest.fixture(scope="module")
def dictionary():
    return pronounce.load_words(10**6)


def test_every_tenth_word_is_held_out_and_in_every_run_the_same(dictionary):
    learn, test = dictionary
    assert not learn.keys() & test.keys()
    assert 0.099 < len(test) / (len(learn) + len(test)) < 0.102
    assert {"attention", "psychology", "thought"} < test.keys()
    # The CRC-32 of a word is the same everywhere: these were worked out with zlib.
    assert {"water", "music", "question", "table"} < test.keys() and {
        "house",
        "school",
        "paper",
        "river",
    } < learn.keys()


def test_what_is_taken_from_the_dictionary(dictionary):
    words = dictionary[0] | dictionary[1]
    assert words["thought"] == [("TH", "AO", "T")]
    assert words["read"] == [("R", "EH", "D"), ("R", "IY", "D")]  # REH1D and RIY1D
    assert words["youth's"] == [("Y", "UW", "TH", "S")]
    assert not words.keys() & {"c-span", "a.m.", "antidisestablishmentarianism"}
    for word, variants in words.items():
        assert len(set(variants)) == len(variants) > 0  # those that differ in stress alone are one
        assert set(itertools.chain(*variants)) <= set(pronounce.PHONEMES)
        assert max(len(word), *(len(variant) + 1 for variant in variants)) <= pronounce.LENGTHS[-1]


def test_fewer_words_are_some_of_all(dictionary):
    learn, test = pronounce.load_words(1000)
    assert len(learn) + len(test) == 1000
    assert learn.items() <= dictionary[0].items() and test.items() <= dictionary[1].items()
    assert len({word[0] for word in learn}) > 20  # from the whole alphabet


def test_batches_have_each_word_once_or_to_fill_up_and_few_shapes():
    words = {"ab": [("AE", "B"), ("AH", "B")], "abc": [("AE",) * 7], "a" * 20: [("AH",)] * 3}
    words |= {first + second: [("AH",)] for first in "abcdefghijkl" for second in "mnopqrstuvwxyz"}
    rng = np.random.default_rng(0)
    passes = [pronounce.draw_batches(words, rng) for _ in range(2)]
    for batches in passes:
        seen = []
        for letters, phonemes in batches:
            assert letters.shape == phonemes.shape == (pronounce.BATCH, letters.shape[1])
            assert letters.shape[1] in pronounce.LENGTHS
            for x, y in zip(letters, phonemes):
                assert y[-1] == pronounce.END
                word = "".join(pronounce.LETTERS[i - 1] for i in x[x > 0])
                assert pronounce.read([y]) == [words[word][0]]  # the first pronunciation alone
                seen.append(word)
        assert set(seen) == set(words)
        assert len(batches) == 2 + -(-(len(words) - 2) // pronounce.BATCH)
    assert not all(np.array_equal(a[0], b[0]) for a, b in zip(*passes))  # drawn anew


def test_error_rates():
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
    assert pronounce.error_rates({"t": ("D",)}, right) == (100, 100)


def test_reading_ends_at_the_first_end():
    ids = [[1, 2, 0, 3], [0, 1, 1, 1], [39, 38, 37, 36]]
    names = pronounce.PHONEMES
    assert pronounce.read(np.array(ids)) == [tuple(names[:2]), (), tuple(names[:-5:-1])]


WORDS = ["a", "it's", "thought", "attention", "antidisestablishmentarianism", "zoo", "queue"]


def log_probability(p, ids):
    """The sum of log p (T, o) of ids (T,) up to the first END, in float64."""
    chosen = np.log(np.take_along_axis(p.astype("float64"), ids[..., None], -1))[..., 0]
    ended = np.cumsum(ids == pronounce.END, axis=-1) - (ids == pronounce.END) > 0
    return np.where(ended, 0, chosen).sum(axis=-1)


def greedy(model, letters):
    """What all decoders together find most probable after what they said before, step by step."""
    B = len(letters)
    ids = np.zeros((B, pronounce.STEPS), "int32")
    for t in range(pronounce.STEPS):
        p = np.mean(model.predict([letters, ids], batch_size=B, verbose=0), axis=0)
        ids[:, t] = p[:, t].argmax(axis=-1)
    return ids * np.cumprod(ids != pronounce.END, axis=1)


def test_a_beam_of_1_is_greedy_and_a_beam_of_5_finds_more(dictionary, monkeypatch):
    monkeypatch.setattr(pronounce, "STEPS", 12)
    model = random_model(0.2)
    letters = pronounce.pad([*WORDS, *list(dictionary[1])[:43]], pronounce.LETTERS, 28)
    one, five = (pronounce.BeamSearch(model, k).predict(letters, verbose=0) for k in (1, 5))
    np.testing.assert_array_equal(one["ids"], greedy(model, letters))
    for found in one, five:
        p = np.mean(model.predict([letters, found["ids"]], verbose=0), axis=0)
        np.testing.assert_allclose(found["log_p"], log_probability(p, found["ids"]), atol=1e-3)
    # A beam can lose what is the best in the end, but seldom, even with random weights.
    more = five["log_p"] - one["log_p"]
    assert np.mean(more > -1e-4) > 0.9 and np.mean(more) > 1


def test_a_beam_of_all_symbols_is_an_exhaustive_search(monkeypatch):
    monkeypatch.setattr(pronounce, "STEPS", 2)
    model, o = random_model(0.2), len(pronounce.PHONEMES) + 1
    words = WORDS[:4]
    letters = pronounce.pad(words, pronounce.LETTERS, 12)
    found = pronounce.BeamSearch(model, o).predict(letters, verbose=0)
    every = np.array(list(itertools.product(range(o), repeat=2)))
    every = every[(every[:, 0] != pronounce.END) | (every[:, 1] == pronounce.END)]
    inputs = np.repeat(letters, len(every), axis=0), np.tile(every, (len(words), 1))
    p = np.mean(model.predict(inputs, batch_size=2000, verbose=0), axis=0)
    p = log_probability(p, inputs[1]).reshape(len(words), -1)
    np.testing.assert_array_equal(found["ids"], every[p.argmax(axis=1)])
    np.testing.assert_allclose(found["log_p"], p.max(axis=1), atol=1e-4)


def test_padding_changes_nothing(dictionary):
    model = random_model(0.2)
    phonemes = pronounce.pad([("AH",) * 5] * len(WORDS), pronounce.PHONEMES, 6)
    outputs = [model([pronounce.pad(WORDS, pronounce.LETTERS, n), phonemes]) for n in (28, 33)]
    for short, long in zip(*outputs):
        np.testing.assert_allclose(short, long, atol=1e-5)


def test_without_attention_a_decoder_sees_one_vector_of_the_whole_word():
    keras.utils.set_random_seed(0)
    model = pronounce.make_model(attention=False)
    encoder = model.get_layer("encoder")
    assert model.count_params() == pronounce.make_model().count_params()
    encoded = [
        encoder(pronounce.pad([w], pronounce.LETTERS, 9))[-2] for w in ("thought", "thoughy")
    ]
    assert encoded[0].shape == (1, 1, encoded[0].shape[-1])
    assert np.abs(encoded[0] - encoded[1]).max() > 1e-4  # the last letter arrives


def test_it_learns_is_kept_and_says(tmp_path, monkeypatch, run_main):
    monkeypatch.setattr(pronounce, "LENGTHS", (22,))  # what takes the time is compiling
    flags = ["--n-words", "300", "--epochs", "1", "--output", tmp_path / "new"]
    status, stdout, stderr = run_main(pronounce, *flags)
    assert status == 0, stderr  # which has log lines where another test imported TensorFlow
    numbers = r"^2\d\d words to learn, \d\d to test, [\d,]+ weights$"
    assert re.search(numbers, stdout, re.MULTILINE)
    for k in 1, 5:
        assert re.search(rf"^beam of {k} +\d+\.\d\d +\d+\.\d\d$", stdout, re.MULTILINE)
    assert re.search(r"^ 1 to 22 +\d+ +\d+\.\d\d$", stdout, re.MULTILINE)
    wrong = re.findall(r"^([a-z']+) .*right: ([A-Z]+)", stdout, re.MULTILINE)
    assert len(wrong) == 10
    picture = tmp_path / "new" / "pronounce.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    picture.unlink()

    status, stdout, stderr = run_main(
        pronounce, "--say", "Attention", "zyzzyva", "--output", tmp_path / "new"
    )
    assert status == 0, stderr
    model = keras.saving.load_model(tmp_path / "new" / "pronounce.keras", compile=False)
    words = ["attention", "zyzzyva"]
    said = pronounce.pronounce(pronounce.BeamSearch(model, 5), words)
    assert stdout.splitlines()[:2] == [" ".join([word, *said[word]]) for word in words]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_as_a_script(tmp_path):
    run = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")  # none of TensorFlow's log lines


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "0"], "argument --epochs: must be at least 1, got 0"),
        (["--n-words", "99"], "argument --n-words: must be at least 100, got 99"),
        (["--seed", "-1"], "argument --seed: must be at least 0, got -1"),
        (["--epochs", "x"], "argument --epochs: invalid integer value: 'x'"),
        (["--say"], "argument --say: expected at least one argument"),
        (["--say", "word", "naïve"], "A word must be made of a to z and ', got 'naïve'"),
        (["--say", "word"], "There is no {output}/pronounce.keras yet: learn first, without --say"),
    ],
)
def test_bad_input_ends_in_one_line(flags, message, tmp_path, run_main):
    status, stdout, stderr = run_main(pronounce, *flags, "--output", tmp_path)
    assert (status, stdout) == (2, "")
    assert message.format(output=tmp_path) in stderr.splitlines()[-1]
