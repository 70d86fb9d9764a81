"""Both READMEs: their blocks are run, their claims looked up, and they say the same."""

import importlib
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PATHS = [ROOT / "README.md", ROOT / "docs" / "README.zh.md"]
ENGLISH, CHINESE = (path.read_text(encoding="utf-8") for path in PATHS)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = BLOCK.findall(ENGLISH)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
# Small flags come last and win; what a command does besides is run as printed.
SMALL = "--n-updates 20 --n-units 5 --n-features 6 --n-timesteps-in 2 --n-timesteps-out 1"
FLAGS = {
    "compare": SMALL + " --n-repeats 1",
    "attention": SMALL,
    "baseline": SMALL,
    "data_prep": "",
}


def test_the_blocks():
    assert {kind for kind, _ in BLOCKS} <= {"bash", "python", "text"}
    assert COMMANDS[:4] == [
        "python3 -m venv .venv",
        ". .venv/bin/activate",
        "pip install -r requirements.txt",
        "python compare.py",
    ]
    assert COMMANDS[-2:] == ["pip install -r tests/requirements.txt", "python -m pytest"]


def test_python_blocks_run_as_pasted(tmp_path):
    layer = "attention_decoder.py"  # the one file that users copy
    (tmp_path / layer).write_bytes((ROOT / layer).read_bytes())
    code = "\n".join(block for kind, block in BLOCKS if kind == "python")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    accuracy = re.search(r"(\d+\.\d+) % right", run.stdout)
    assert accuracy and float(accuracy[1]) >= 95
    greedy = re.search(r"reversed: \[([\d ]+)\]", run.stdout)[1]
    beams, probabilities = re.search(
        r"\[\[([\d ]+)\]\n \[[\d ]+\]\] \[([^\]]+)\]", run.stdout
    ).groups()
    assert beams.split() == greedy.split()  # the best of the beam
    best, second = map(float, probabilities.split())
    assert 1.001 > best > second > 0


# In the text, too. Setting up and the tests are run by CI as printed, a cluster in test_compare.py.
INLINE = re.findall(r"`(python \w+\.py[^`]*)`", BLOCK.sub("", ENGLISH))


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS + INLINE))
def test_commands_run(command, tmp_path, monkeypatch, run_main):
    python, script, *flags = shlex.split(command)
    if (name := script.removesuffix(".py")) in FLAGS and "--scheduler" not in flags:
        monkeypatch.chdir(tmp_path)
        script = importlib.import_module(name)
        status, stdout, stderr = run_main(script, *flags, *FLAGS[name].split())
        assert (python, status, stderr) == ("python", 0, "") and stdout


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_links_and_names(path):
    text = path.read_text(encoding="utf-8")
    for target in links(path):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for name in re.findall(r"`(?:python )?([\w/]+\.py)`", text):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    functions = set(re.findall(r"`(\w+)\(\)`", text))
    assert len(functions) > 10
    sources = " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    for function in functions:
        assert re.search(rf"(def|class) {function}\b", sources), function


def links(path):
    """The targets of a README's links, from the root, in order, without those to the other one."""
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", text))
    inside = [target for target in targets if not target.startswith("http")]
    paths = {target: (path.parent / target).resolve() for target in inside}
    targets = [
        target if target not in paths else paths[target].relative_to(ROOT).as_posix()
        for target in targets
        if paths.get(target) not in PATHS
    ]
    return targets


def test_each_readme_leads_to_the_other():
    assert "](docs/README.zh.md)" in "".join(ENGLISH.splitlines()[:4])
    assert "](../README.md)" in "".join(CHINESE.splitlines()[:4])


def test_both_have_the_same_blocks_tables_numbers_and_links():
    for number, (english, chinese) in enumerate(zip(BLOCKS, BLOCK.findall(CHINESE)), 1):
        assert english == chinese, f"code block {number} differs"
    assert len(BLOCKS) == len(BLOCK.findall(CHINESE))
    assert links(PATHS[0]) == links(PATHS[1])
    sections = [
        re.split(r"^## .*$", BLOCK.sub("", t), flags=re.MULTILINE) for t in (ENGLISH, CHINESE)
    ]
    assert len(sections[0]) == len(sections[1])
    for number, (english, chinese) in enumerate(zip(*sections)):
        numbers = [
            sorted(re.findall(r"\d+(?:[.,]\d+)*", re.sub(r"\]\([^)]*\)", "]", text)))
            for text in (english, chinese)
        ]
        assert numbers[0] == numbers[1], f"numbers of section {number} differ"
        rows = [
            [len(row.split("|")) for row in text.splitlines() if row.startswith("|")]
            for text in (english, chinese)
        ]
        assert rows[0] == rows[1], f"tables of section {number} differ"
        codes = [sorted(re.findall(r"`[^`]+`", text)) for text in (english, chinese)]
        assert codes[0] == codes[1], f"code words of section {number} differ"


# What no command here prints: versions, sizes that are set, the loss in
# the picture, papers, and measurements by others.
ELSEWHERE = set(
    "0.5 2.0.8 2.0.9 3.0 3.2 3.10 5,000 1409.0473 1506.00196 23.10 95.70 21.3 97.4 23.55".split()
)


def test_every_figure_is_in_the_outputs_kept():
    """docs/outputs.txt: what docs/outputs.sh, with the commands beside the figures, printed."""
    outputs = (ROOT / "docs" / "outputs.txt").read_text(encoding="utf-8")
    figure = re.compile(r"\d+(?:[.,]\d+)+")
    missing = set(figure.findall(BLOCK.sub("", ENGLISH))) - ELSEWHERE - set(figure.findall(outputs))
    for mean, std in re.findall(r"([\d.]+) ± ([\d.]+)", ENGLISH):
        if not re.search(rf" {mean} +{std} ", outputs):
            missing.add(f"{mean} ± {std}")

    runs = {}
    for run in re.split(r"^\$ ", outputs, flags=re.MULTILINE)[1:]:
        command, printed, seconds, kilobytes = re.fullmatch(
            r"(.*)\n((?:.*\n)*?)([\d.]+) s, (\d+) KB\s*", run
        ).groups()
        runs[command] = printed, float(seconds), int(kilobytes)
    printed, seconds, kilobytes = runs["python compare.py"]
    (tests,) = [run for command, run in runs.items() if command.startswith("python -m pytest")]
    assert re.search(r"^\d+ passed, \d+ skipped", tests[0], re.MULTILINE)
    assert printed == next(block for kind, block in BLOCKS if kind == "text")
    rounded = [
        f"{seconds:.0f} seconds",
        f"{kilobytes * 2**10 / 1e9:.1f} GB",
        f"{int(runs['du -sm .venv'][0].split()[0]) * 2**20 / 1e9:.1f} GB",
        f"{runs['python docs/pronounce.py'][1] / 60:.0f} minutes",
        f"{tests[1] / 60:.0f} minutes",
    ]
    missing -= {text.split()[0] for text in rounded}
    missing |= {text for text in rounded if text not in ENGLISH}
    assert not missing, f"figures that README.md and docs/outputs.txt do not share: {missing}"


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
    for text in (ENGLISH, CHINESE):
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
