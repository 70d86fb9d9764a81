"""The problem's data: meaning, shapes, reproducibility and bad input."""

import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

import data_prep
from data_prep import (
    generate_sequence,
    get_pair,
    get_pairs,
    get_pairs_in_parts,
    one_hot_decode,
    one_hot_encode,
)


def test_a_sequence_has_all_integers_and_a_seed_gives_it_again():
    values = generate_sequence(10_000, 7, 3)
    assert set(values) == set(range(7)) and type(values[0]) is int
    assert values == generate_sequence(10_000, 7, np.random.default_rng(3))
    assert generate_sequence(20, 50) != generate_sequence(20, 50)


def test_encoded_and_decoded_again_is_the_same():
    encoded = one_hot_encode([2, 0, 3], 4)
    assert encoded.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]]
    assert encoded.dtype == np.float32
    assert all(type(value) is int for value in one_hot_decode(encoded))
    assert one_hot_decode(np.array([[0.1, 0.7, 0.2]])) == [1]
    for values in ([1.0, 0.0], [[2, 0, 3], [1, 1, 0]]):
        assert one_hot_decode(one_hot_encode(values, 4)) == values


def test_encoding_takes_the_memory_of_its_result():
    tracemalloc.start()
    try:
        assert one_hot_encode([3] * 5, 10_000).nbytes == 200_000
        assert tracemalloc.get_traced_memory()[1] < 400_000
    finally:
        tracemalloc.stop()


def test_y_has_the_first_integers_of_x_and_zeros():
    X, y = get_pairs(500, 6, 2, 11, 0)
    assert X.shape == y.shape == (500, 6, 11) and X.dtype == y.dtype == np.float32
    values_in, values_out = np.array(one_hot_decode(X)), np.array(one_hot_decode(y))
    assert set(values_in.ravel()) == set(range(11))
    np.testing.assert_array_equal(values_out, values_in * [1, 1, 0, 0, 0, 0])


def test_pairs_are_the_same_drawn_one_by_one():
    rng = np.random.default_rng(3)
    pairs = [get_pair(5, 2, 50, rng) for _ in range(4)]
    for one_by_one, at_once in zip(zip(*pairs), get_pairs(4, 5, 2, 50, 3)):
        np.testing.assert_array_equal(np.concatenate(one_by_one), at_once)


def test_pairs_are_the_same_drawn_in_parts(monkeypatch):
    monkeypatch.setattr(data_prep, "PAIRS_AT_ONCE", 3)
    parts = list(get_pairs_in_parts(7, 5, 2, 50, 4))
    assert [len(X) for X, _ in parts] == [3, 3, 1]
    for in_parts, at_once in zip(zip(*parts), get_pairs(7, 5, 2, 50, 4)):
        np.testing.assert_array_equal(np.concatenate(in_parts), at_once)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_numpys_integers_do_what_pythons_do(integer):
    X, y = get_pairs(*map(integer, (90, 5, 2, 50, 3)))
    for array, expected in zip((X, y), get_pairs(90, 5, 2, 50, 3)):
        np.testing.assert_array_equal(array, expected)
    assert one_hot_encode(one_hot_decode(X), integer(50)).tolist() == X.tolist()
    assert generate_sequence(integer(9), integer(7), 3) == generate_sequence(9, 7, 3)


INTEGERS = "sequence must hold integers from 0 to 1, got "


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_hot_encode([1, 2], 2), INTEGERS + "[1, 2]"),
        (lambda: one_hot_encode([-1, 1], 2), INTEGERS + "[-1, 1]"),
        (lambda: one_hot_encode([[True, False]], 2), INTEGERS + "[[True, False]]"),
        (lambda: one_hot_encode([0.5, 1.0], 2), INTEGERS + "[0.5, 1.0]"),
        (lambda: one_hot_encode([1, float("nan")], 2), INTEGERS + "[1, nan]"),
        (lambda: one_hot_encode([], 2), INTEGERS + "[]"),
        (lambda: one_hot_encode(["1", "0"], 2), INTEGERS + "['1', '0']"),
        (lambda: get_pair(5, 6, 50), "n_out must be an integer from 1 to n_in (5), got 6"),
        (lambda: get_pairs(7, 5, 0, 50), "n_out must be an integer from 1 to n_in (5), got 0"),
        (lambda: get_pairs(7, 5, 2.5, 50), "n_out must be an integer from 1 to n_in (5), got 2.5"),
        (lambda: get_pairs(0, 5, 2, 50), "n_pairs must be at least 1, got 0"),
        (lambda: next(get_pairs_in_parts(-3, 5, 2, 50)), "n_pairs must be at least 1, got -3"),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_the_script_prints_a_sequence_its_vectors_and_a_pair():
    command = [sys.executable, data_prep.__file__]
    printed = subprocess.check_output(command, text=True, timeout=100)
    sequence, *vectors, decoded, shapes, pair = printed.splitlines()
    assert len(eval(sequence)) == 5 and decoded == sequence
    rows = [row.split() for row in "".join(vectors).strip("[]").split("] [")]
    assert rows == [["1" if i == value else "0" for i in range(50)] for value in eval(sequence)]
    assert shapes == "(1, 5, 50) (1, 5, 50)"
    X, y = (eval(part) for part in pair.removeprefix("X=").split(", y="))
    assert y == [*X[:2], 0, 0, 0]
