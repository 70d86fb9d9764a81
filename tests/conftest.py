"""For all tests: a process that a test starts ends with the test, or after ten minutes."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import pytest

LONGEST = 600  # seconds of a process; a test has those of faulthandler_timeout in pyproject.toml


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
