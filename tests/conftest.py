"""What the tests of several scripts share. Imports neither Keras nor a backend."""

import pathlib
import signal
import sys

import pytest


@pytest.fixture
def run_main(monkeypatch, capfd):
    """Runs a script's main here, with what is compiled already: no process to start and wait for.

    Called with the module and its flags, returns exit status, output and error output.
    """

    def run(script, *flags):
        monkeypatch.setattr(sys, "argv", [pathlib.Path(script.__file__).name, *map(str, flags)])
        monkeypatch.setenv("COLUMNS", "80")
        interrupt = signal.getsignal(signal.SIGINT)
        capfd.readouterr()
        try:
            script.main()
            status = 0
        except SystemExit as end:
            status = end.code or 0
        finally:
            signal.signal(signal.SIGINT, interrupt)
        return status, *capfd.readouterr()

    return run
