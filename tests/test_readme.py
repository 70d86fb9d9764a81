"""READMEs and manuals: what they say is run, looked up beside its command, or compared."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from attention import attention_model

ROOT = pathlib.Path(__file__).parent.parent
PATHS = [ROOT / p for p in ("README.md", "docs/README.zh.md", "docs/layer.md", "docs/layer.zh.md")]
TEXTS = [path.read_text(encoding="utf-8") for path in PATHS]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
BLOCKS = [BLOCK.findall(text) for text in TEXTS]
COMMAND = re.compile(r"`(python [a-z/_]+\.py[^`]*)`")


# What runs


def test_two_commands_do_all_the_set_up():
    """.ci/run runs them as they stand."""
    set_up = "python3 -m venv .venv && . .venv/bin/activate && pip install -r "
    commands = [
        "requirements.txt && python compare.py",
        "tests/requirements.txt && python -m pytest",
    ]
    bash = [block for kind, block in BLOCKS[0] if kind == "bash"]
    assert bash == [f"{set_up}{command}\n" for command in commands]
    requirements = (ROOT / "tests" / "requirements.txt").read_text()
    assert requirements.startswith("-r ../requirements.txt\n")


(OWN_SEQUENCE,) = [b for kind, b in BLOCKS[0] if kind == "python" and "attention.keras" in b]


def test_a_kept_model_takes_a_sequence_of_ones_own(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    attention_model(5, 50).save(tmp_path / "results" / "attention.keras")
    monkeypatch.chdir(tmp_path)
    exec(OWN_SEQUENCE, {})
    (decoded,) = eval(capsys.readouterr().out.splitlines()[-1])
    assert len(decoded) == 5


def test_python_blocks_run_as_pasted_one_after_the_other(tmp_path):
    layer = "attention_decoder.py"  # the one file that users copy
    (tmp_path / layer).write_bytes((ROOT / layer).read_bytes())
    blocks = [block for kind, block in BLOCKS[0] + BLOCKS[2] if kind == "python"]
    code = "\n".join(block for block in blocks if block != OWN_SEQUENCE)
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
    beams = re.search(r"\[\[([\d ]+)\]\n \[[\d ]+\]\] \[([^\]]+)\]\n", run.stdout)
    assert beams[1].split() == reversed_x.split()
    best, second = map(float, beams[2].split())
    assert 1.001 > best > second > 0
    assert "\nTrue\n21 [(None, 11), (None, 64), (None, 8)]\n" in run.stdout
    assert "W_s" in run.stderr and "nan" not in run.stdout  # the manual says so, and fills gaps
    acc, weighted_acc = re.search(r" acc: (\S+) .*weighted_acc: (\S+)", run.stdout).groups()
    assert acc != weighted_acc
    assert float(re.search(r"Error of sales: (\d+\.\d+)", run.stdout)[1]) < 0.3  # 1 without prices
    second = re.search(r"^ \[([\d ]+)\]\]$", run.stdout, re.MULTILINE)[1]  # of greedy's rows
    served = re.search(r"^Served: \[\[([\d ]+)\]\]$", run.stdout, re.MULTILINE)[1]
    assert served.split() == second.split() + ["0"] * 12
    assert "\nLiteRT: True\n" in run.stdout


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_commands_files_flags_and_functions_exist(path):
    text = path.read_text(encoding="utf-8")
    for command in COMMAND.findall(text):
        script = (ROOT / command.split()[1]).read_text(encoding="utf-8")
        for flag in re.findall(r"--[\w-]+", command):
            assert f'"{flag}"' in script, command
    for target in [*links(path), *re.findall(r"`([\w/]+\.py)`", text)]:
        assert target.startswith("http") or (ROOT / target).exists(), target
    sources = " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    for function in re.findall(r"`(\w+)\(\)`", text):
        assert re.search(rf"(def|class) {function}\b", sources), function


def test_manual_and_layer_claim_the_same_oldest_keras():
    layer = (ROOT / "attention_decoder.py").read_text(encoding="utf-8")
    (claim,) = re.findall(r"Keras \((3\.\d+) or later\)", layer)
    assert f"Keras {claim} or later" in TEXTS[2]


# "Try it": questions, each with commands to run and an answer; or first with changes of scripts:
#
# ```diff
# # attention.py
# -    an old line, which the script has once
# +    what to put in its place
# ```


def questions():
    """Returns [(diff blocks, commands, answer)] of the English README's questions."""
    *parts, rest = re.search(r"^## Try it\n(.*?)^## ", TEXTS[0], re.DOTALL | re.MULTILINE)[1].split(
        "</details>"
    )
    assert "?" not in rest
    found = []
    for part in parts:
        question, answer = part.split("<details>")
        diffs = [block for kind, block in BLOCK.findall(question) if kind == "diff"]
        commands = COMMAND.findall(BLOCK.sub("", question))
        found.append((diffs, commands, answer))
    return found


def change(folder, diffs):
    """Copies the scripts to a new folder and makes the changes there."""
    folder.mkdir(parents=True)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, folder)
    for diff in diffs:
        path = folder / diff.splitlines()[0].removeprefix("# ")
        text = path.read_text(encoding="utf-8")
        for pair in re.findall(r"^((?:-.*\n)+)((?:\+.*\n)*)", diff, re.MULTILINE):
            old, new = (re.sub(r"^[-+]", "", lines, flags=re.MULTILINE) for lines in pair)
            assert text.count(old) == 1, f"{path.name} must have this once:\n{old}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")


def label(command, diffs):
    """What stands for a command in docs/outputs.txt: itself, and the lines that were put in."""
    lines = [line for diff in diffs for line in re.findall(r"^\+ *(.*)", diff, re.MULTILINE)]
    return " # ".join([command, *lines])


def write_changes(folder):
    """For docs/outputs.sh: the changed scripts, and a line for each of their commands."""
    for number, (diffs, commands, _) in enumerate(questions()):
        if diffs:
            change(pathlib.Path(folder, str(number)), diffs)
            for command in commands:
                print(folder, number, sep="/", end=f"\t{label(command, diffs)}\n")


CHANGES = [(diffs, commands) for diffs, commands, _ in questions() if diffs]


@pytest.mark.parametrize("number", range(max(len(CHANGES), 2)))  # there are two or more
def test_a_change_to_try_fits_the_script_and_runs(number, tmp_path):
    diffs, commands = CHANGES[number]
    folder = tmp_path / "changed"
    change(folder, diffs)
    for name, large, small in (
        ("baseline", r"\b5000\b", "20"), ("attention", r"\b5000\b", "20"),
        ("baseline", r"\b150\b", "5"), ("attention", r"\b150\b", "5"),
        ("baseline", "jit_compile=True", "jit_compile=False"),
    ):  # fmt: skip
        path = folder / f"{name}.py"
        text, hits = re.subn(large, small, path.read_text(encoding="utf-8"))
        assert hits, f"{name}.py has no {large} to make smaller"
        path.write_text(text, encoding="utf-8")
    assert commands
    for command in commands:
        _, *arguments = command.split()
        run = subprocess.run(
            [sys.executable, *arguments], cwd=folder, capture_output=True, text=True
        )
        assert run.returncode == 0 and "Accuracy" in run.stdout, run.stderr


# Figures

OUTPUTS = (ROOT / "docs" / "outputs.txt").read_text(encoding="utf-8")
# {command: (what it printed, its seconds)}
RUNS = {
    command: (printed, float(seconds))
    for command, printed, seconds in re.findall(
        r"^\$ (.*)\n((?:(?!\$ ).*\n)*?)([\d.]+) s, \d+ KB$", OUTPUTS, re.MULTILINE
    )
}
# What no command here prints: versions, papers, and what others measured.
ELSEWHERE = set(
    "0.10 2.0.8 2.0.9 2.13 2.21 3.0 3.10 3.13 3.15 3.16 2,000 5,000 1409.0473 1506.00196 "
    "23.10 95.70 21.3 97.4 33.89 23.55".split()
)
FIGURE = re.compile(r"\d+(?:[.,]\d+)+")


def missing(text, commands):
    """The figures of a text that none of the commands printed."""
    printed = "\n".join(RUNS[command][0] for command in commands if command in RUNS)
    figures = {f for f in set(FIGURE.findall(text)) - ELSEWHERE if f not in FIGURE.findall(printed)}
    for mean, std in re.findall(r"([\d.]+) ± ([\d.]+)", text):
        if not re.search(rf" {mean} +{std} ", printed):
            figures.add(f"{mean} ± {std}")
    return figures


def seconds_and_sizes():
    """What the texts say rounded, of seconds and of disk."""
    return [
        f"{RUNS['python compare.py'][1]:.0f} seconds",
        f"{int(RUNS['du -sm .venv'][0].split()[0]) * 2**20 / 1e9:.1f} GB",
        f"{RUNS['python docs/pronounce.py'][1] / 60:.0f} minutes",
    ]


def test_every_figure_was_printed_by_the_command_beside_it():
    """That of its line or table; else those of its section, else the README's first."""
    rounded = seconds_and_sizes()
    text = TEXTS[0] + TEXTS[2]
    assert not [part for part in rounded if part not in text]
    text = re.sub(r"^## Try it\n.*?(?=^## )", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub("|".join(map(re.escape, rounded)), "", BLOCK.sub("", text))
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        of_section = COMMAND.findall(section) or ["python compare.py"]
        for table in section.split("\n\n"):
            header, *_ = table.splitlines() or [""]
            for line in table.splitlines():
                commands = COMMAND.findall(line) or COMMAND.findall(header) or of_section
                assert not missing(line, commands), line


def test_every_answer_was_printed_by_the_commands_of_its_question():
    for diffs, commands, answer in questions():
        assert commands
        for command in commands:
            assert label(command, diffs) in RUNS, "see docs/outputs.sh"
        changed = [label(command, diffs) for command in commands]
        assert not missing(answer, [*changed, *commands]), answer


def test_every_output_shown_was_printed_by_the_command_before_it():
    command, shown = None, []
    for inline, kind, block in re.findall(f"{COMMAND.pattern}|{BLOCK.pattern}", TEXTS[0], 24):
        if kind == "text":
            shown.append(command)
            printed = RUNS[command][0]
            for part in block.split("...\n"):
                assert part in printed, part
                printed = printed.split(part, 1)[1] if part else printed  # in this order
        elif kind == "bash":
            command = block.strip().split(" && ")[-1]
        command = inline or command
    assert shown == [f"python {name}.py" for name in "compare baseline attention".split()]


# Two languages, and the article


def links(path):
    """The targets of a text's links, from the root, in order."""
    targets = []
    for target in re.findall(r"\]\(([^)#]+)\)", BLOCK.sub("", path.read_text(encoding="utf-8"))):
        if not target.startswith("http"):
            target = (path.parent / target).resolve().relative_to(ROOT).as_posix()
        targets.append(target)
    return targets


@pytest.mark.parametrize("first", [0, 2])
def test_both_languages_have_the_same_blocks_tables_numbers_and_links(first):
    for number, (a, b) in enumerate(zip(BLOCKS[first], BLOCKS[first + 1]), 1):
        assert a == b, f"code block {number} differs"
    assert len(BLOCKS[first]) == len(BLOCKS[first + 1])
    english, chinese = (links(path) for path in PATHS[first : first + 2])
    names = [path.relative_to(ROOT).as_posix() for path in PATHS]
    assert (english[0], chinese[0]) == (names[first + 1], names[first])  # to each other
    originals = dict(zip(names[1::2], names[::2]))
    assert english[1:] == [originals.get(target, target) for target in chinese[1:]]
    sections = [
        re.split(r"^## .*$", BLOCK.sub("", text), flags=re.MULTILINE)
        for text in TEXTS[first : first + 2]
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
    for text in TEXTS[:2]:
        rows = [row.strip("| ").split(" | ")[:2] for row in text.splitlines() if row[:1] == "|"]
        pairs = [sorted(row) for row in rows if set(row) & headings.keys()]
        assert pairs == [sorted(pair) for pair in headings.items()]
    scripts = "data_prep baseline attention_decoder attention compare".split()
    for name, pair in zip(scripts, list(headings.items())[1:], strict=True):
        first = (ROOT / f"{name}.py").read_text(encoding="utf-8").splitlines()[0]
        assert pair[0] in first and pair[1] in first, name
