"""READMEs and manuals: blocks and commands are run, figures looked up, languages compared."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PATHS = [ROOT / p for p in ("README.md", "docs/README.zh.md", "docs/layer.md", "docs/layer.zh.md")]
TEXTS = [path.read_text(encoding="utf-8") for path in PATHS]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [BLOCK.findall(text) for text in TEXTS]
INLINE = [re.findall(r"`(python [a-z/_]+\.py[^`]*)`", BLOCK.sub("", text)) for text in TEXTS]
# Small flags come last and win; what a command does besides is run as printed.
SMALL = "--n-updates 20 --n-units 5 --n-features 6 --n-timesteps-in 2 --n-timesteps-out 1"
FLAGS = {
    "compare": SMALL + " --n-repeats 1",
    "attention": SMALL,
    "baseline": SMALL,
    "data_prep": "",
}


def test_two_commands_do_all_the_set_up():
    set_up = "python3 -m venv .venv && . .venv/bin/activate && pip install -r "
    commands = [
        "requirements.txt && python compare.py",
        "tests/requirements.txt && python -m pytest",
    ]
    bash = [block for kind, block in BLOCKS[0] if kind == "bash"]
    assert bash == [f"{set_up}{command}\n" for command in commands]
    requirements = (ROOT / "tests" / "requirements.txt").read_text()
    assert requirements.startswith("-r ../requirements.txt\n")


def test_python_blocks_run_as_pasted_one_after_the_other(tmp_path):
    layer = "attention_decoder.py"  # the one file that users copy
    (tmp_path / layer).write_bytes((ROOT / layer).read_bytes())
    code = "\n".join(block for kind, block in BLOCKS[0] + BLOCKS[2] if kind == "python")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert float(re.search(r"(\d+\.\d+) % right", run.stdout)[1]) >= 95
    assert float(re.search(r"Loss: (\d+\.\d+)", run.stdout)[1]) < 0.1
    assert float(re.search(r"Root mean square error: (\d+\.\d+)", run.stdout)[1]) < 0.3
    x, reversed_x = re.search(r"^\[([\d ]+)\] \[([\d ]+)\]$", run.stdout, re.MULTILINE).groups()
    assert x.split() == reversed_x.split()[::-1]  # 8 symbols, no padding
    greedy, sampled = re.findall(r"^\[\[([\d ]+)\]", run.stdout, re.MULTILINE)[:2]
    assert greedy.split() == reversed_x.split() and len(sampled.split()) == 8
    beams, probabilities = re.search(
        r"\[\[([\d ]+)\]\n \[[\d ]+\]\] \[([^\]]+)\]\n", run.stdout
    ).groups()
    assert beams.split() == reversed_x.split()
    best, second = map(float, probabilities.split())
    assert 1.001 > best > second > 0
    assert run.stdout.splitlines()[-2:] == ["True", "21 [(None, 11), (None, 64), (None, 8)]"]


# Setting up and the tests are run by CI as printed, a cluster in test_compare.py.
@pytest.mark.parametrize("command", dict.fromkeys(INLINE[0] + INLINE[2]))
def test_commands_run(command, tmp_path, monkeypatch, run_main):
    python, script, *flags = shlex.split(command)
    if (name := script.removesuffix(".py")) in FLAGS and "--scheduler" not in flags:
        monkeypatch.chdir(tmp_path)
        script = importlib.import_module(name)
        status, stdout, stderr = run_main(script, *flags, *FLAGS[name].split())
        assert (python, status, stderr) == ("python", 0, "") and stdout
    else:
        assert (ROOT / script).exists()


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_links_and_names(path):
    text = path.read_text(encoding="utf-8")
    for target in links(path):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for name in re.findall(r"`(?:python )?([\w/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    sources = " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    for function in re.findall(r"`(\w+)\(\)`", text):
        assert re.search(rf"(def|class) {function}\b", sources), function


@pytest.mark.parametrize("change", re.findall(r"`([\w.]+\(n_units,[^`]*)…`", TEXTS[0]))
def test_the_changed_lines_that_are_to_be_tried(change):
    """They are in a script, but for the one argument that is added."""
    line = re.sub(r'\w+=("\w+"|\w+), ', "", change)
    assert line != change
    assert any(line.rstrip() in path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))


def links(path):
    """The targets of a text's links, from the root, in order; of translations, the original."""
    targets = []
    for target in re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if not target.startswith("http"):
            target = (path.parent / target).resolve().relative_to(ROOT).as_posix()
        targets.append(target)
    return targets


@pytest.mark.parametrize("first", [0, 2])
def test_both_languages_have_the_same_blocks_tables_numbers_and_links(first):
    english, chinese = TEXTS[first : first + 2]
    for number, (a, b) in enumerate(zip(BLOCKS[first], BLOCKS[first + 1]), 1):
        assert a == b, f"code block {number} differs"
    assert len(BLOCKS[first]) == len(BLOCKS[first + 1])
    original = {"docs/README.zh.md": "README.md", "docs/layer.zh.md": "docs/layer.md"}
    found = [[original.get(t, t) for t in links(path)] for path in PATHS[first : first + 2]]
    assert found[0][1:] == found[1][1:]  # the first is the one to the other language
    assert links(PATHS[first])[0] == PATHS[first + 1].relative_to(ROOT).as_posix()
    assert links(PATHS[first + 1])[0] == PATHS[first].relative_to(ROOT).as_posix()
    sections = [
        re.split(r"^## .*$", BLOCK.sub("", text), flags=re.MULTILINE) for text in (english, chinese)
    ]
    assert len(sections[0]) == len(sections[1])
    for number, pair in enumerate(zip(*sections)):
        for what, pattern in (
            ("numbers", r"\d+(?:[.,]\d+)*"), ("code words", r"`[^`]+`"), ("rows", r"^\||\|$")
        ):  # fmt: skip
            a, b = (
                sorted(re.findall(pattern, re.sub(r"\]\([^)]*\)", "]", text), re.MULTILINE))
                for text in pair
            )
            assert a == b, f"{what} of section {number} differ"


# What no command here prints: versions, papers, and what others measured.
ELSEWHERE = set(
    "2.0.8 2.0.9 3.2 3.10 3.13 3.16 2,000 5,000 1409.0473 1506.00196 "
    "23.10 95.70 21.3 97.4 33.89 23.55".split()
)


def test_every_figure_is_in_the_outputs_kept():
    """docs/outputs.txt: what docs/outputs.sh, with the commands beside the figures, printed."""
    outputs = (ROOT / "docs" / "outputs.txt").read_text(encoding="utf-8")
    figure, text = re.compile(r"\d+(?:[.,]\d+)+"), TEXTS[0] + TEXTS[2]
    missing = set(figure.findall(BLOCK.sub("", text))) - ELSEWHERE - set(figure.findall(outputs))
    for mean, std in re.findall(r"([\d.]+) ± ([\d.]+)", text):
        if not re.search(rf" {mean} +{std} ", outputs):
            missing.add(f"{mean} ± {std}")

    runs = {}
    for run in re.split(r"^\$ ", outputs, flags=re.MULTILINE)[1:]:
        command, printed, seconds = re.fullmatch(
            r"(.*)\n((?:.*\n)*?)([\d.]+) s, \d+ KB\s*", run
        ).groups()
        runs[command] = printed, float(seconds)
    scripts = ("compare", "data_prep", "baseline", "attention")
    blocks = [block for kind, block in BLOCKS[0] if kind == "text"]
    for name, block in zip(scripts, blocks, strict=True):
        for part in block.split("...\n"):
            assert part in runs[f"python {name}.py"][0], part
    (tests,) = [run for command, run in runs.items() if command.startswith("python -m pytest")]
    assert re.search(r"^\d+ passed, \d+ skipped", tests[0], re.MULTILINE)
    rounded = [
        f"{runs['python compare.py'][1]:.0f} seconds",
        f"{int(runs['du -sm .venv'][0].split()[0]) * 2**20 / 1e9:.1f} GB",
        f"{runs['python docs/pronounce.py'][1] / 60:.0f} minutes",
        f"{tests[1] / 60:.0f} minutes",
    ]
    missing -= {part.split()[0] for part in rounded}
    missing |= {part for part in rounded if part not in text}
    assert not missing, f"figures that the texts and docs/outputs.txt do not share: {missing}"


def test_the_articles_headings_are_found():
    """In both READMEs, in the article's order, and in the first line of each script."""
    headings = {
        "Encoder-Decoder with Attention": "注意编码器解码器",
        "Test Problem for Attention": "注意力的测试问题",
        "Encoder-Decoder Without Attention": "编码器 - 解码器没有注意",
        "Custom Keras Attention Layer": "自定义Keras注意层",
        "Encoder-Decoder With Attention": "编码器解码器注意",
        "Comparison of Models": "模型比较",
    }
    names = [None, "data_prep", "baseline", "attention_decoder", "attention", "compare"]
    for text in TEXTS[:2]:
        rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| ")]
        rows = [[cell.strip("| ") for cell in row] for row in rows]
        pairs = [sorted(row[:2]) for row in rows if set(row[:2]) & headings.keys()]
        assert pairs == [sorted(pair) for pair in headings.items()]
    for name, pair in zip(names[1:], list(headings.items())[1:]):
        first = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()[0]
        assert pair[0] in first and pair[1] in first, name


def test_the_articles_listing_runs_with_the_layer_beside_it(tmp_path):
    """Its calls, in a folder with nothing else, through saving, loading and predicting."""
    layer = "attention_decoder.py"
    (tmp_path / layer).write_bytes((ROOT / layer).read_bytes())
    code = """
import numpy as np
from keras.models import Sequential, load_model
from keras.layers import LSTM
from attention_decoder import AttentionDecoder
model = Sequential()
model.add(LSTM(150, input_shape=(5, 50), return_sequences=True))
model.add(AttentionDecoder(150, 50))
model.compile(loss='categorical_crossentropy', optimizer='adam', metrics=['acc'])
assert model.count_params() == 363_900
rng = np.random.default_rng(0)
for _ in range(3):
    X, y = np.eye(50)[rng.integers(50, size=(2, 1, 5))]
    model.fit(X, y, epochs=1, verbose=2)
expected = model.predict(X, verbose=0)
model.save('model.keras')
again = load_model('model.keras')
np.testing.assert_allclose(again.predict(X, verbose=0), expected, atol=1e-6)
print(expected.shape)
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "(1, 5, 50)"
    assert run.stdout.count("acc: ") == 3


@pytest.mark.parametrize("script", FLAGS)
def test_the_help_shows_the_articles_values_in_80_columns(script, run_main):
    status, stdout, stderr = run_main(importlib.import_module(script), "--help")
    assert (status, stderr) == (0, "") and stdout.isascii()
    assert max(map(len, stdout.splitlines())) <= 80
    help = re.sub(r"\s+", " ", stdout)
    defaults = {"in": 5, "out": 2, "features": 50, "units": 150, "updates": 5000}
    for name, value in list(defaults.items())[: 3 if script == "data_prep" else 5]:
        assert re.search(rf"--n-(timesteps-)?{name} N_\w+ [^-]*\(default: {value}\)", help), name
