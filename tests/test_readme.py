"""The README's code blocks are run, and its claims about the repository are looked up."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
SETUP = "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
# Small flags come last and win; what a command does besides is run as printed.
SMALL = {
    "compare.py": "--n-updates 20 --n-repeats 1 --n-units 4 --n-timesteps-in 2 --n-timesteps-out 1",
    "attention.py": "--n-updates 20 --n-units 4 --n-timesteps-in 2 --n-timesteps-out 1",
    "baseline.py": "--n-updates 20 --n-units 4 --n-timesteps-in 2 --n-timesteps-out 1",
    "data_prep.py": "",
}


def test_the_set_up_commands():
    assert f"{SETUP} && .venv/bin/python compare.py" in COMMANDS
    test = f"{SETUP} -r tests/requirements.txt && .venv/bin/python -m pytest"
    assert test in COMMANDS
    assert {kind for kind, _ in BLOCKS} <= {"bash", "python", "text", "bibtex"}


@pytest.mark.parametrize("code", [block for kind, block in BLOCKS if kind == "python"])
def test_python_blocks_run_as_pasted(code, tmp_path):
    layer = "attention_decoder.py"  # the one file that users copy
    (tmp_path / layer).write_bytes((ROOT / layer).read_bytes())
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    accuracy = re.search(r"(\d+\.\d+) % right", run.stdout)
    assert accuracy and float(accuracy[1]) >= 95


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(command, tmp_path):
    if "pytest" in command:
        pytest.skip("run by .ci/run as printed")
    if "--scheduler" in command:
        pytest.skip("run in test_compare.py against a cluster of its own")
    for part in command.split(" && "):
        words = shlex.split(part)
        script = next((word for word in words if word.endswith(".py")), None)
        if script is None:
            continue  # the environment of these tests is what the set-up makes
        words = [sys.executable if word.endswith("/python") else word for word in words]
        words = words[words.index(sys.executable) :]
        words[1] = str(ROOT / script)
        run = subprocess.run(
            words + SMALL[script].split(), cwd=tmp_path, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr


def test_links_and_names():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for name in re.findall(r"`(\w+\.py)`", README):
        assert (ROOT / name).exists() or (ROOT / "tests" / name).exists(), name
    functions = set(re.findall(r"`(\w+)\(\)`", README))
    assert len(functions) > 10
    sources = " ".join(path.read_text(encoding="utf-8") for path in ROOT.glob("*.py"))
    for function in functions:
        assert re.search(rf"(def|class) {function}\b", sources), function


def test_the_flags_of_the_help_are_the_articles():
    for script in ("baseline.py", "attention.py", "compare.py"):
        run = subprocess.run(
            [sys.executable, ROOT / script, "--help"], capture_output=True, text=True
        )
        assert run.returncode == 0
        help = re.sub(r"\s+", " ", run.stdout)
        defaults = {"in": 5, "out": 2, "features": 50, "units": 150, "updates": 5000}
        for name, value in defaults.items():
            assert re.search(rf"--n-(timesteps-)?{name} N [^-]*\(default: {value}\)", help), name
