"""The problem's data: meaning, shapes, reproducibility, speed and bad input."""

import subprocess
import sys
import time

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
    X, y = get_pair(5, 2, 50, rng)
    assert X.shape == y.shape == (1, 5, 50)
    for n_pairs in (1, 4):
        pairs = [(X, y)] if n_pairs == 1 else [get_pair(5, 2, 50, rng) for _ in range(n_pairs)]
        for one_by_one, at_once in zip(zip(*pairs), get_pairs(n_pairs, 5, 2, 50, again)):
            assert np.array_equal(np.concatenate(one_by_one), at_once)


def test_a_number_is_a_seed():
    for seed in (0, 7):
        expected = generate_sequence(9, 50, np.random.default_rng(seed))
        assert generate_sequence(9, 50, seed) == expected
        assert one_hot_decode(get_pair(9, 2, 50, seed)[0]) == [expected]
        assert one_hot_decode(get_pairs(1, 9, 2, 50, seed)[0]) == [expected]


def test_get_pairs_is_vectorised():
    get_pairs(10, 5, 2, 50)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        get_pairs(5000, 5, 2, 50)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.1  # a loop over get_pair takes several times as long


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_hot_encode([1, 5], 5), r"from 0 to 4, got \[1, 5\]"),
        (lambda: one_hot_encode([-1, 2], 5), r"from 0 to 4, got \[-1, 2\]"),
        (lambda: get_pair(5, 6, 50), r"n_out must be at most n_in \(5\), got 6"),
        (lambda: get_pairs(7, 5, 6, 50), r"n_out must be at most n_in \(5\), got 6"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_as_a_script():
    run = subprocess.run(
        [sys.executable, data_prep.__file__, "--n-timesteps-in", "4", "--n-features", "7"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not run.stderr
    sequence, *encoded, decoded, shapes, values = run.stdout.splitlines()
    assert len(eval(sequence)) == 4 and decoded == sequence
    for row, value in zip(encoded, eval(sequence), strict=True):
        assert row.strip(" []").split() == ["1." if i == value else "0." for i in range(7)]
    assert shapes == "(1, 4, 7) (1, 4, 7)"
    X, y = (eval(part) for part in values.removeprefix("X=").split(", y="))
    assert y == [*X[:2], 0, 0]
