"""The problem's data: meaning, shapes, reproducibility and bad input."""

import subprocess
import sys

import numpy as np
import pytest

import data_prep
from data_prep import generate_sequence, get_pair, get_pairs, one_hot_decode, one_hot_encode


def test_generate_sequence():
    values = generate_sequence(10_000, 7, np.random.default_rng(0))
    assert set(values) == set(range(7)) and type(values[0]) is int
    assert values == generate_sequence(10_000, 7, np.random.default_rng(0))
    assert generate_sequence(20, 50) != generate_sequence(20, 50)


def test_one_hot_encode_and_decode():
    encoded = one_hot_encode([2, 0, 3], 4)
    assert encoded.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert encoded.dtype == np.float32
    decoded = one_hot_decode(encoded)
    assert decoded == [2, 0, 3] and all(type(value) is int for value in decoded)
    assert one_hot_decode(np.array([[0.1, 0.7, 0.2]])) == [1]
    many = np.random.default_rng(0).integers(9, size=(3, 5))
    assert one_hot_decode(one_hot_encode(many, 9)) == many.tolist()
    assert one_hot_decode(one_hot_encode([1.0, 0.0], 2)) == [1, 0]


def test_get_pairs():
    X, y = get_pairs(500, 6, 2, 11, np.random.default_rng(0))
    assert X.shape == y.shape == (500, 6, 11) and X.dtype == y.dtype == np.float32
    assert np.all(X.sum(axis=-1) == 1) and np.all(y.sum(axis=-1) == 1)
    values_in, values_out = np.array(one_hot_decode(X)), np.array(one_hot_decode(y))
    assert np.array_equal(values_out[:, :2], values_in[:, :2])
    assert np.all(values_out[:, 2:] == 0)
    assert set(values_in.ravel()) == set(range(11))
    again = get_pairs(500, 6, 2, 11, np.random.default_rng(0))
    assert np.array_equal(again[0], X) and np.array_equal(again[1], y)
    assert not np.array_equal(get_pairs(500, 6, 2, 11)[0], get_pairs(500, 6, 2, 11)[0])


def test_get_pairs_are_as_many_calls_of_get_pair():
    rng, again = np.random.default_rng(3), np.random.default_rng(3)
    pairs = [get_pair(5, 2, 50, rng) for _ in range(4)]
    for one_by_one, at_once in zip(zip(*pairs), get_pairs(4, 5, 2, 50, again)):
        assert np.array_equal(np.concatenate(one_by_one), at_once)


def test_a_number_is_a_seed():
    for seed in (0, 7):
        expected = generate_sequence(9, 50, np.random.default_rng(seed))
        assert generate_sequence(9, 50, seed) == expected
        assert one_hot_decode(get_pair(9, 2, 50, seed)[0]) == [expected]


INTEGERS = r"sequence must hold integers from 0 to 1, got "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_hot_encode([1, 2], 2), INTEGERS + r"\[1, 2\]"),
        (lambda: one_hot_encode([-1, 1], 2), INTEGERS + r"\[-1, 1\]"),
        (lambda: one_hot_encode([True, False], 2), INTEGERS + r"\[True, False\]"),
        (lambda: one_hot_encode([[True, False], [False, True]], 2), INTEGERS),
        (lambda: one_hot_encode([0.5, 1.0], 2), INTEGERS + r"\[0.5, 1.0\]"),
        (lambda: one_hot_encode([1, float("nan")], 2), INTEGERS + r"\[1, nan\]"),
        (lambda: one_hot_encode([1, float("inf")], 2), INTEGERS + r"\[1, inf\]"),
        (lambda: one_hot_encode([], 2), INTEGERS + r"\[\]"),
        (lambda: one_hot_encode(["1", "0"], 2), INTEGERS + r"\['1', '0'\]"),
        (lambda: one_hot_encode([None], 2), INTEGERS + r"\[None\]"),
        (lambda: get_pair(5, 6, 50), r"n_out must be an integer from 1 to n_in \(5\), got 6"),
        (lambda: get_pairs(7, 5, 0, 50), r"n_out must be an integer from 1 to n_in \(5\), got 0"),
        (lambda: get_pairs(7, 5, 2.5, 50), "n_out must be an integer from 1 .*, got 2.5"),
        (lambda: get_pairs(0, 5, 2, 50), "n_pairs must be at least 1, got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_as_a_script():
    """The article's lines: a sequence, its vectors of whole numbers, the sequence, a pair."""
    run = subprocess.run(
        [sys.executable, data_prep.__file__], capture_output=True, text=True, check=True
    )
    vectors = "".join(run.stdout.splitlines()[1:-3])
    sequence, decoded, shapes, values = run.stdout.splitlines()[:1] + run.stdout.splitlines()[-3:]
    assert len(eval(sequence)) == 5 and decoded == sequence
    rows = [row.split() for row in vectors.strip("[]").split("] [")]
    assert rows == [["1" if i == value else "0" for i in range(50)] for value in eval(sequence)]
    assert shapes == "(1, 5, 50) (1, 5, 50)"
    X, y = (eval(part) for part in values.removeprefix("X=").split(", y="))
    assert y == [*X[:2], 0, 0, 0]
