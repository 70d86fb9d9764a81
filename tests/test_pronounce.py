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


def random_model(scale, seed=0):
    """A model whose random weights, biases too, make it sure of what it says."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(seed)
    model, encoder, decoder = pronounce.make_model()
    model.set_weights([rng.normal(scale=scale, size=w.shape) for w in model.get_weights()])
    return model, encoder, decoder


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


def test_batches_have_every_pair_and_few_shapes():
    words = {"ab": [("AE", "B"), ("AH", "B")], "abc": [("AE",) * 7], "a" * 20: [("AH",)] * 3}
    batches = pronounce.Batches(words, np.random.default_rng(0))
    for _ in range(2):
        seen = set()
        for (letters, fed), phonemes in (batches[i] for i in range(len(batches))):
            assert letters.shape == phonemes.shape == (pronounce.BATCH, letters.shape[1])
            assert letters.shape[1] in pronounce.LENGTHS
            assert fed is phonemes
            for x, y in zip(letters, phonemes):
                assert y[-1] == pronounce.END
                word = "".join(pronounce.LETTERS[i - 1] for i in x[x > 0])
                seen.add((word, *pronounce.read([y])))
        assert seen == {(word, variant) for word in words for variant in words[word]}
        batches.on_epoch_end()


@pytest.mark.parametrize(
    "a, b, distance",
    [("", "", 0), ("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("ab", "ba", 2)],
)
def test_edit_distance(a, b, distance):
    assert pronounce.edit_distance(a, b) == pronounce.edit_distance(b, a) == distance


def test_error_rates():
    right = [[("R", "EH", "D"), ("R", "IY", "D")], [("AH",), ("AH", "B", "K", "D")], [("T",)]]
    assert pronounce.error_rates([("R", "IY", "D"), ("AH",), ("T",)], right) == (0, 0)
    # One of three words wrong, two errors in 3 + 4 + 1 phonemes of the nearest pronunciations
    spoken = [("R", "IY", "D"), ("AH", "B", "T", "D", "D"), ("T",)]
    assert pronounce.error_rates(spoken, right) == pytest.approx((25, 100 / 3))
    assert pronounce.error_rates([()] * 3, right) == pytest.approx((100 * 5 / 5, 100))


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


def test_a_beam_of_1_is_greedy_and_a_beam_of_5_finds_more(dictionary):
    model, encoder, decoder = random_model(0.2)
    words = [*WORDS, *list(dictionary[1])[:193]]
    letters = pronounce.pad(words, pronounce.LETTERS, 28)
    ids = pronounce.greedy(encoder, decoder).predict(letters, verbose=0)["ids"]
    ids *= np.cumprod(ids != pronounce.END, axis=-1)
    one, five = (
        pronounce.BeamSearch(encoder, decoder, k).predict(letters, verbose=0) for k in (1, 5)
    )
    np.testing.assert_array_equal(one["ids"], ids)
    for found in one, five:
        p = model.predict([letters, found["ids"]], verbose=0)
        np.testing.assert_allclose(found["log_p"], log_probability(p, found["ids"]), atol=1e-3)
    # A beam can lose what is the best in the end, but seldom, even with random weights.
    more = five["log_p"] - one["log_p"]
    assert np.mean(more > -1e-4) > 0.9 and np.mean(more) > 1


def test_a_beam_of_all_symbols_is_an_exhaustive_search(monkeypatch):
    monkeypatch.setattr(pronounce, "STEPS", 2)
    model, encoder, decoder = random_model(0.2)
    o = decoder.output_dim
    words = WORDS[:4]
    letters = pronounce.pad(words, pronounce.LETTERS, 12)
    found = pronounce.BeamSearch(encoder, decoder, o).predict(letters, verbose=0)
    every = np.array(list(itertools.product(range(o), repeat=2)))
    every = every[(every[:, 0] != pronounce.END) | (every[:, 1] == pronounce.END)]
    inputs = np.repeat(letters, len(every), axis=0), np.tile(every, (len(words), 1))
    p = log_probability(model.predict(inputs, batch_size=2000, verbose=0), inputs[1])
    p = p.reshape(len(words), -1)
    np.testing.assert_array_equal(found["ids"], every[p.argmax(axis=1)])
    np.testing.assert_allclose(found["log_p"], p.max(axis=1), atol=1e-4)


def test_the_script_run_small(tmp_path, monkeypatch, run_main):
    monkeypatch.setattr(pronounce, "LENGTHS", (9, 22))  # half of what takes the time: compiling
    flags = ["--n-words", "300", "--epochs", "1", "--output", tmp_path / "new"]
    status, stdout, stderr = run_main(pronounce, *flags)
    assert status == 0, stderr  # which has log lines where another test imported TensorFlow
    assert re.search(
        r"^2\d\d words to learn, \d\d to test, \d\d\d,\d\d\d weights$", stdout, re.MULTILINE
    )
    assert re.search(r"^greedy +\d+\.\d\d +\d+\.\d\d +\d+\.\d$", stdout, re.MULTILINE)
    assert re.search(r"^beam of 5 +\d+\.\d\d +\d+\.\d\d +\d+\.\d$", stdout, re.MULTILINE)
    picture = (tmp_path / "new" / "pronounce.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 10_000


def test_as_a_script():
    run = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")  # none of TensorFlow's log lines


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--epochs", "0"], "--epochs: must be at least 1, got 0"),
        (["--n-words", "99"], "--n-words: must be at least 100, got 99"),
        (["--seed", "-1"], "--seed: must be at least 0, got -1"),
        (["--epochs", "x"], "--epochs: invalid integer value: 'x'"),
        (["--output", str(SCRIPT)], f"--output: File exists: '{SCRIPT}'"),
    ],
)
def test_bad_flags(flags, message, run_main):
    status, stdout, stderr = run_main(pronounce, *flags)
    assert (status, stdout) == (2, "")
    assert stderr.endswith(f"pronounce.py: error: argument {message}\n")
