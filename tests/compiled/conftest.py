"""These tests compile Triton's kernels, which a process under TRITON_INTERPRET=1 cannot: its kernels are another class.

So where the session interprets, the folder's tests run in one pytest process of their own, and each one's outcome is
reported here as it comes. ``TRITON_INTERPRET=0 pytest tests/compiled`` runs them in place, for a debugger.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
REPORTS = "DIMR_COMPILED_TESTS_REPORTS"
"""Names the file descriptor that the other process writes its reports to."""
_other: pytest.StashKey[_OtherProcess] = pytest.StashKey()


def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if os.environ.get("TRITON_INTERPRET") != "1" or FOLDER not in item.path.parents:  # pytest asks for every test
        return None
    session = item.session
    if _other not in session.stash:
        ours = [one.nodeid for one in session.items if FOLDER in one.path.parents]
        session.stash[_other] = _OtherProcess(session.config, ours)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in session.stash[_other].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In the other process."""
    if REPORTS in os.environ:
        line = json.dumps({"nodeid": report.nodeid, "when": report.when, "report": report._to_json()}) + "\n"
        os.write(int(os.environ[REPORTS]), line.encode())


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _other in session.stash:
        session.stash[_other].end()


class _OtherProcess:
    def __init__(self, config: pytest.Config, tests: list[str]) -> None:
        self._config = config
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115
        reading, writing = os.pipe()
        environment = {**os.environ, "TRITON_INTERPRET": "0", REPORTS: str(writing)}
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *_max_failures(config), *tests]
        self._process = subprocess.Popen(
            command,
            cwd=config.rootpath,
            env=environment,
            pass_fds=[writing],
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        os.close(writing)
        self._lines = os.fdopen(reading)

    def reports(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Setup, call and teardown of a test, in the order of the session; waits for them."""
        found = []
        for line in self._lines:
            data = json.loads(line)
            if data["nodeid"] != item.nodeid:
                return [self._missing(item, f"a report of {data['nodeid']} came instead")]
            found.append(pytest.TestReport._from_json(data["report"]))
            if data["when"] == "teardown":
                return found
        return [self._missing(item, "the process that compiles ended without a report")]

    def _missing(self, item: pytest.Item, why: str) -> pytest.TestReport:
        self._output.seek(0)
        message = f"{why}; its output ends:\n{self._output.read()[-5000:]}"
        return pytest.TestReport(item.nodeid, item.location, {}, "failed", message, "call")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._lines.close()
        self._output.close()


def _max_failures(config: pytest.Config) -> list[str]:
    most: Any = config.getoption("maxfail")
    return [f"--maxfail={most}"] if most else []
