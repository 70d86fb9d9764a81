"""For all tests: what they start ends with them, or after ten minutes; and what saves time."""

import contextlib
import functools
import importlib
import os
import signal
import subprocess
import sys
import threading
from unittest import mock

import pytest

LONGEST = 600  # seconds of a process; a test has those of faulthandler_timeout in pyproject.toml


def pytest_collection_modifyitems(items):
    """The files that take longest first: in the end, no worker waits long for another."""
    longest = "test_compare.py", "test_readme.py", "test_pronounce.py", "test_train.py"
    items.sort(key=lambda item: item.path.name not in longest)


def end(process):
    """Ends all processes of its group, if there are any."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def start():
    """Starts Python in a process group of its own, as a shell does."""
    with contextlib.ExitStack() as after_the_test:

        def start(*command, **kwargs):
            pipes = dict.fromkeys(["stdin", "stdout", "stderr"], subprocess.PIPE)
            command = [sys.executable, *command]
            process = subprocess.Popen(
                command, **pipes, text=True, start_new_session=True, **kwargs
            )
            after_the_test.enter_context(process)  # closes the pipes and waits
            after_the_test.callback(end, process)
            timer = threading.Timer(LONGEST, end, [process])  # also for who waits for a line
            after_the_test.callback(timer.cancel)
            timer.start()
            return process

        yield start


@pytest.fixture
def start_kernel():
    """Starts the kernel of a notebook in a folder; returns its manager and its client."""
    from jupyter_client.manager import start_new_kernel  # not where the layer alone is tested

    with contextlib.ExitStack() as after_the_test:

        def start_kernel(folder, **kwargs):
            manager, kernel = start_new_kernel(cwd=str(folder), **kwargs)
            after_the_test.callback(manager.shutdown_kernel, now=True)
            after_the_test.callback(kernel.stop_channels)
            return manager, kernel

        yield start_kernel


@pytest.fixture
def without_xla(monkeypatch):
    """compare.py compiles without XLA, at once, and for this test alone."""
    import compare

    monkeypatch.setattr(compare, "COMPILED", {})
    for name in "train", "compile_updates", "compile_shared_updates":
        plain = functools.partial(getattr(compare, name), jit_compile=False)
        monkeypatch.setattr(compare, name, plain)


@pytest.fixture
def import_from(monkeypatch):
    """Imports a changed script of another folder, and those beside it, as a process would."""
    import keras

    with mock.patch.dict(keras.saving.get_custom_objects()):

        def import_from(folder, name):
            monkeypatch.syspath_prepend(folder)
            for path in folder.glob("*.py"):
                monkeypatch.delitem(sys.modules, path.stem)
            return importlib.import_module(name)

        yield import_from
