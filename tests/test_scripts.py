"""baseline.py and attention.py as a reader runs them, also by mistake."""

import functools
import io
import pathlib
import re
import runpy
import sys

import matplotlib
import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.image import imread

from attention import attention_model, attention_weights, plot_weights
from attention_decoder import AttentionDecoder
from baseline import baseline_model, evaluate, train
from data_prep import get_pairs, one_hot_decode
from oracle import assert_readable, from_the_manual, saved_figure
import keras

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("make_model", "n_weights"), [(baseline_model, 308_750), (attention_model, 363_900)]
)
def test_the_articles_models_have_its_sizes_and_settings(make_model, n_weights):
    model = make_model(*map(np.int64, (5, 50, 150)))
    assert model.count_params() == make_model(5, 50).count_params() == n_weights
    assert model.input_shape == model.output_shape == (None, 5, 50)
    assert model.loss == "categorical_crossentropy"
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert model.optimizer.get_config()["learning_rate"] == pytest.approx(0.001)
    outputs = model(get_pairs(3, 5, 2, 50)[0])
    np.testing.assert_allclose(np.sum(outputs, axis=-1), 1, atol=1e-5)
    lstms = [layer for layer in model.layers if isinstance(layer, keras.layers.LSTM)]
    assert lstms and all(lstm.activation is keras.activations.tanh for lstm in lstms)


def test_evaluate_counts_whole_sequences():
    def parrot(X):
        """Repeats the input up to step 2 and zeros after, but every fourth errs in one step."""
        y = np.zeros_like(X)
        y[:, :2] = X[:, :2]
        y[:, 2:, 0] = 1
        for i, wrong in enumerate(y[::4]):
            wrong[i % 5] = np.roll(wrong[i % 5], 1)
        return y

    assert evaluate(parrot, 5, 2, 50, n_eval=100) == 75
    assert evaluate(parrot, 5, 2, 50, n_eval=7) == pytest.approx(100 * 5 / 7)


# The scripts


def small(name, folder):
    """Writes a script with smaller numbers to a folder; returns its path."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = text.replace("jit_compile=True", "jit_compile=False")  # without XLA: faster
    for old, new in {
        "n_features = 50": "n_features = 6",
        "n_timesteps_in = 5": "n_timesteps_in = 3",
        "get_pairs(5000,": "get_pairs(1000,",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.fixture
def tmp_path(tmp_path):
    """Its name has what names of folders have elsewhere."""
    folder = tmp_path / "a reader's 文件夹"
    folder.mkdir()
    return folder


@pytest.fixture
def lines_of(tmp_path, monkeypatch, capsys):
    """Runs a small script, which any code page can print; returns its lines after the accuracy."""

    def run(name):
        monkeypatch.setattr("baseline.train", functools.partial(train, jit_compile=False))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name])
        runpy.run_path(small(name, tmp_path), run_name="__main__")
        printed = capsys.readouterr().out
        assert printed.isascii()
        accuracy, *lines = printed.splitlines()
        assert re.fullmatch(r"Accuracy: \d+\.\d\d%", accuracy)
        return lines

    return run


def test_baseline_prints_the_accuracy_and_ten_sequences(lines_of):
    three = r"\[\d, \d, \d\]"
    lines = lines_of("baseline.py")
    assert len(lines) == 10
    assert all(re.fullmatch(f"Expected: {three} Predicted {three}", line) for line in lines)


def test_attention_keeps_the_model_whose_outputs_and_weights_it_shows(lines_of, tmp_path):
    lines, results = lines_of("attention.py"), tmp_path / "results"
    assert (results / "attention.png").read_bytes().startswith(b"\x89PNG")
    model = keras.models.load_model(results / "attention.keras")
    rng = np.random.default_rng(0)
    get_pairs(1000, 3, 2, 6, rng), get_pairs(100, 3, 2, 6, rng)  # to train on, to evaluate
    X, y = get_pairs(10, 3, 2, 6, rng)
    expected = zip(one_hot_decode(y), one_hot_decode(model(X)))
    assert lines[:10] == [f"Expected: {a} Predicted {b}" for a, b in expected]
    X, _ = get_pairs(4, 3, 2, 6, rng)
    outputs, weights = attention_weights(model, X)
    np.testing.assert_allclose(outputs, model(X), atol=1e-5)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    values_in, values_out = one_hot_decode(X[0]), one_hot_decode(outputs[0])
    assert f"input {values_in} across, output {values_out} down" in lines[10]
    shown = [line.strip(" []").split() for line in lines[11:14]]
    np.testing.assert_allclose(np.array(shown, int), 100 * weights[0], atol=0.6)
    assert np.ptp(100 * weights[0], axis=0).max() > 5  # not all rows look alike
    assert lines[14:] == ["Written: results/attention.keras, results/attention.png"]


def test_attention_weights_are_of_the_articles_models_alone():
    pairs = keras.Input((5, 50))
    decoder = AttentionDecoder(3, 50)
    functional = keras.Model(pairs, decoder(keras.layers.Dense(3)(pairs)))
    message = 'ends in an AttentionDecoder, got .*: for others, see "(.*)" in (.*)'
    for model in functional, baseline_model(5, 50):
        with pytest.raises(ValueError, match=message) as refused:
            attention_weights(model, get_pairs(2, 5, 2, 50)[0])
        section, manual = re.search(message, str(refused.value)).groups()
        assert f"\n## {section}\n" in (ROOT / manual).read_text(encoding="utf-8")


def test_the_picture_of_long_sequences_has_bounds(tmp_path):
    values = [list(range(100))] * 4
    plot_weights(tmp_path / "picture.png", values, values, np.ones((4, 100, 100)))
    height, width, _ = imread(tmp_path / "picture.png").shape
    assert 1000 * 1000 < width * height < 30e6


def test_the_picture_has_room_for_words(tmp_path, monkeypatch):
    read = ["the", "attention", "of", "internationalization", "commissioners", "fell"]
    written = ["die", "Aufmerksamkeit", "sank"]
    arguments = tmp_path / "picture.png", [read] * 2, [written] * 2, np.ones((2, 3, 6))
    figure = saved_figure(monkeypatch, plot_weights, *arguments)
    for axis in figure.axes[:2]:
        across, down = axis.get_xticklabels(), axis.get_yticklabels()
        assert [label.get_text() for label in (*across, *down)] == read + written
        for labels in across, down:
            assert_readable(labels, figure)
        assert axis.get_window_extent().width > 40 and axis.get_window_extent().height > 20


@pytest.mark.parametrize("word", ["$x_$", r"$\what$"])
def test_a_word_with_dollar_signs_is_no_formula(word, tmp_path):
    plot_weights(tmp_path / "picture.png", [[word]], [[word, "b"]], np.ones((1, 2, 1)))
    names = from_the_manual(Figure=Figure)
    names["heat_map"](tmp_path / "heat_map.png", [word], [word, "b"], np.ones((2, 1)))


@pytest.mark.parametrize(
    "inputs, outputs, weights, message",
    [
        ([[1]], [[]], np.ones((1, 0, 1)), "outputs must have at least one value in each pair, got"),
        ([[1], []], [[2], [3]], np.ones((2, 1, 1)), "inputs must have at least one value in each"),
        ([], [], np.ones((0, 1, 1)), "inputs must have at least one value in each pair, got []"),
        ([[1]], [[2]], None, "(T_out, T_in) of each pair, [(1, 1)], got None"),
        ([[1, 3]], [[2]], np.ones((1, 2)), "(T_out, T_in) of each pair, [(1, 2)], got [(2,)]"),
        ([[1], [3]], [[2], [4]], np.ones((1, 1, 1)), "pair, [(1, 1), (1, 1)], got [(1, 1)]"),
        ([[1], [3]], [[2]], np.ones((1, 1, 1)), "weights must be attention weights of the shapes"),
    ],
)
def test_a_picture_of_nothing_is_refused(inputs, outputs, weights, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        plot_weights(tmp_path / "picture.png", inputs, outputs, weights)


def small_font(path):
    """Writes a font of four Chinese letters, bars of other heights; as a .ttc, a collection."""
    letters = "注意力机"
    names = [".notdef", *(f"letter{i}" for i in range(len(letters)))]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(dict(zip(map(ord, letters), names[1:])))
    glyphs = {}
    for height, name in enumerate(names, start=1):
        pen = TTGlyphPen(None)
        pen.moveTo((100, 0))
        for x, y in (900, 0), (900, 150 * height), (100, 150 * height):
            pen.lineTo((x, y))
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 100) for name in names})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Four Letters", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    if path.suffix == ".ttc":
        collection = TTCollection()
        collection.fonts = [builder.font]
        collection.save(path)
    else:
        builder.save(path)


@pytest.fixture
def only_matplotlibs_fonts(monkeypatch):
    manager = font_manager.fontManager
    own = [font for font in manager.ttflist if font.fname.startswith(matplotlib.get_data_path())]
    monkeypatch.setattr(manager, "ttflist", own)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    with matplotlib.rc_context():
        yield


def drawn_by_plot_weights(path, word):
    plot_weights(path, [[word, "a"]], [[word]], np.ones((1, 1, 2)))


def drawn_by_the_manual(path, word):
    names = from_the_manual(Figure=Figure, font_manager=font_manager, rcParams=matplotlib.rcParams)
    names["use_a_font_with"](word)
    names["heat_map"](path, [word, "a"], [word], np.ones((1, 2)))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("draw", [drawn_by_plot_weights, drawn_by_the_manual])
@pytest.mark.parametrize("file", ["font.ttf", "font.ttc"])
def test_two_chinese_words_look_different(
    file, draw, only_matplotlibs_fonts, tmp_path, monkeypatch, capsys
):
    """In a font that was installed after Matplotlib had made its list of them."""
    small_font(tmp_path / file)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [str(tmp_path / file)])
    pictures = []
    for word in "注意", "力机", "注意":
        draw(tmp_path / "picture.png", word)
        pictures.append(imread(tmp_path / "picture.png"))
    first, other, again = pictures
    assert first.shape == other.shape and np.all(first == again)
    assert np.count_nonzero(np.any(first != other, axis=-1)) > 100
    assert capsys.readouterr().out == ""


def test_where_no_font_has_a_letter_it_is_told_what_to_install(
    only_matplotlibs_fonts, tmp_path, capsys
):
    install = "sudo apt install fonts-noto-cjk"
    with pytest.warns(UserWarning) as warned:
        drawn_by_plot_weights(tmp_path / "picture.png", "注意")
        messages = [str(warning.message) for warning in warned]
        assert any(text.startswith("no font has 意注:") and install in text for text in messages)
        drawn_by_the_manual(tmp_path / "picture.png", "注意")
    assert install in capsys.readouterr().out


@pytest.mark.parametrize("name", ["data_prep.py", "baseline.py", "attention.py"])
def test_the_small_scripts_refuse_every_flag(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, "--n-units=9"])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(ROOT / name, run_name="__main__")
    stdout, stderr = capsys.readouterr()
    assert (refused.value.code, stdout) == (2, "")
    assert "unrecognized arguments: --n-units=9" in stderr


@pytest.mark.parametrize("name", ["data_prep.py", "baseline.py", "attention.py", "compare.py"])
def test_the_help_fits_every_code_page(name, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(ROOT / name, run_name="__main__")
    sys.stdout.flush()
    printed = sys.stdout.buffer.getvalue().decode("ascii")
    assert ended.value.code == 0 and printed.startswith(f"usage: {name}") and "Run it" in printed


def test_keras_on_another_backend_is_told_in_one_sentence(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    message = (
        "these scripts need Keras on TensorFlow, but it already runs on jax: "
        "set KERAS_BACKEND=tensorflow before it is imported"
    )
    with pytest.raises(ImportError, match=message):
        runpy.run_path(ROOT / "baseline.py")
