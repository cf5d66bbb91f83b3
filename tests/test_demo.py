"""`python -m aevents.demo` as its users start it: real processes, on a pipe and on a terminal."""

from __future__ import annotations

import errno
import fcntl
import http.client
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DEADLINE_S = 60.0
ALL_IS_WELL = "Everything happened as it must"


class Demo:
    """A running demo, with its own folder for temporary files, what it has written, and its end."""

    def __init__(
        self, folder: Path, *arguments: str, stdout: int = subprocess.PIPE, **environment: str
    ) -> None:
        self.temporary = folder
        self.text = ""
        plain = {key: value for key, value in os.environ.items() if key not in _ABOUT_COLOUR}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "aevents.demo", *arguments],
            env={**plain, "TMPDIR": str(folder), "PYTHONIOENCODING": "utf-8", **environment},
            stdout=stdout,
            stderr=subprocess.PIPE,
        )
        self._stderr = b""
        self._readers = [threading.Thread(target=self._read_stderr)]
        if self.process.stdout is not None:
            self._readers.append(threading.Thread(target=self.read, args=(self.process.stdout.fileno(),)))
        for reader in self._readers:
            reader.start()

    def read(self, stdout: int) -> None:
        """Take what it writes until its end."""
        written = b""
        while part := _read(stdout):
            written += part
            self.text = written.decode(errors="ignore")

    def wait_for(self, text: str) -> None:
        """Return as soon as `text` was written."""
        ends = time.monotonic() + DEADLINE_S
        while text not in self.text:
            assert self.process.poll() is None, self.everything
            assert time.monotonic() < ends, self.everything
            time.sleep(0.02)

    def wait(self) -> int:
        """Return the exit code at the end."""
        code = self.process.wait(DEADLINE_S)
        for reader in self._readers:
            reader.join(DEADLINE_S)
        return code

    def end(self) -> None:
        """End it, whatever it does."""
        if self.process.poll() is None:
            self.process.terminate()
        self.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    @property
    def stderr(self) -> str:
        return self._stderr.decode(errors="replace")

    @property
    def everything(self) -> str:
        return self.text + self.stderr

    @property
    def ports(self) -> dict[str, int]:
        """The ports of the services that have started."""
        found = re.findall(r"(\w+) +started +http://127\.0\.0\.1:(\d+)", self.text)
        return {name: int(port) for name, port in found}

    @property
    def processes(self) -> list[int]:
        """The runner and its services, known by their folder, where the system shows it (/proc)."""
        mark = f"TMPDIR={self.temporary}\0".encode()
        return [
            int(path.parent.name) for path in Path("/proc").glob("[0-9]*/environ") if mark in _bytes(path)
        ]

    def assert_nothing_is_left(self) -> None:
        """No process, no file, nobody who listens."""
        assert self.processes == []
        assert list(self.temporary.iterdir()) == []
        for port in self.ports.values():
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        self._stderr = self.process.stderr.read()


StartDemo = Callable[..., Demo]
_ABOUT_COLOUR = {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"}


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[StartDemo]:
    """Starts demos and ends them after the test."""
    demos: list[Demo] = []

    def start(*arguments: str, **options: object) -> Demo:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        demos.append(Demo(folder, *arguments, **options))  # type: ignore[arg-type]  # str or int by name
        return demos[-1]

    yield start
    for demo in demos:
        demo.end()


def test_the_demo_shows_every_scene_on_a_pipe_and_leaves_nothing_behind(start_demo: StartDemo) -> None:
    # Given no terminal, and colour wished for all the same
    demo = start_demo(FORCE_COLOR="1", PYTHONDEVMODE="1")

    # When it runs to its end
    code = demo.wait()

    # Then all is well, the lines are plain and each fact is there
    assert code == 0, demo.everything
    assert demo.stderr == ""
    assert "\x1b" not in demo.text
    assert ALL_IS_WELL in demo.text
    for line in (
        r"accounts  user-created +→ payments +\d+\.\d ms  parked +Cannot connect",
        r"payments  user-created +billing\.open_account +\d+\.\d ms  handled\n",
        r"payments  user-created +loyalty\.give_card +\d+\.\d ms  handled\n",
        r"payments  payment-received +→ orders, accounts +emitted +in a handler\n",
        r"orders    user-signed-out +unhandled\n",
        r"payments  order-cancelled +billing\.refund +\d+\.\d ms  raised +BankIsBusy: try again\n",
        r"payments  order-cancelled +billing\.refund +\d+\.\d ms  handled +at try 2\n",
    ):
        assert re.search(line, demo.text), line
    # and so is the summary
    assert _figures(demo.text) == {
        "service": ["emitted", "delivered", "retried", "parked", "handled", "raised"],
        "accounts": ["3", "5", "2", "1", "1", "0"],
        "orders": ["3", "2", "0", "0", "3", "0"],
        "payments": ["1", "2", "0", "0", "7", "1"],
        "all": ["7", "9", "2", "1", "11", "1"],
    }
    assert sorted(demo.ports) == ["accounts", "orders", "payments"]
    demo.assert_nothing_is_left()


def test_the_demo_is_coloured_on_a_terminal_of_80_columns(start_demo: StartDemo) -> None:
    # Given a terminal
    terminal, stdout = pty.openpty()
    fcntl.ioctl(stdout, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        demo = start_demo(stdout=stdout, TERM="xterm-256color")
    finally:
        os.close(stdout)

    # When it runs to its end
    try:
        demo.read(terminal)
    finally:
        os.close(terminal)

    # Then it is coloured, no row is wider than the terminal, and the cursor is back
    assert demo.wait() == 0, demo.everything
    assert "\x1b[32m  handled" in demo.text
    assert ALL_IS_WELL in demo.text
    rows = [_without_escapes(line).split("\r")[-1] for line in demo.text.replace("\r\n", "\n").split("\n")]
    assert [row for row in rows if re.match(r" +\d+\.\d{3}  ", row) and len(row) > 80] == []
    assert demo.text.rindex("\x1b[?25h") > demo.text.rindex("\x1b[?25l")
    demo.assert_nothing_is_left()


def test_serve_keeps_the_services_running_until_ctrl_c(start_demo: StartDemo) -> None:
    # Given the demo, after its story
    demo = start_demo("--serve")
    demo.wait_for("/events/\n")
    assert ALL_IS_WELL in demo.text
    if Path("/proc/self/environ").exists():
        assert len(demo.processes) == 4

    # When somebody signs up by himself
    connection = http.client.HTTPConnection("127.0.0.1", demo.ports["accounts"], timeout=DEADLINE_S)
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/sign-up/", "name=Lin", form)
    answer = connection.getresponse().read()
    connection.close()

    # Then he is answered and shown, and Ctrl-C is a good end
    assert answer == b'{"user_id": 3, "orders": "delivered", "payments": "delivered"}'
    _poll(lambda: demo.text.count("billing.open_account") == 2)
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 0, demo.everything
    assert demo.stderr == ""
    demo.assert_nothing_is_left()


def test_a_signal_in_the_middle_leaves_nothing_behind(start_demo: StartDemo) -> None:
    # Given the demo in the midst of its second scene
    demo = start_demo()
    demo.wait_for("sign-up/\n")

    # When it is told to end, twice, as impatient people do
    demo.process.terminate()
    demo.process.terminate()

    # Then it does, and says so
    assert demo.wait() == 128 + signal.SIGTERM
    assert demo.text.endswith("\nInterrupted.\n")
    assert demo.stderr == ""
    demo.assert_nothing_is_left()


def test_ctrl_c_while_the_services_start_leaves_nothing_behind(start_demo: StartDemo) -> None:
    demo = start_demo()
    demo.wait_for("1. accounts and orders start")
    demo.process.send_signal(signal.SIGINT)
    assert demo.wait() == 128 + signal.SIGINT
    assert demo.stderr == ""
    demo.assert_nothing_is_left()


def test_a_service_that_does_not_start_is_named_with_the_end_of_its_log(
    start_demo: StartDemo, tmp_path: Path
) -> None:
    # Given something that breaks orders at its start
    path = _code_in_services(tmp_path, "orders", "raise SystemExit('the disk is full')")

    # When the demo runs
    demo = start_demo(PYTHONPATH=path)

    # Then it says which one ended, and why
    assert demo.wait() == 1, demo.everything
    assert "orders ended." in demo.text
    assert "The last lines of orders:" in demo.text
    assert "the disk is full" in demo.text
    demo.assert_nothing_is_left()


def test_the_demo_fails_where_an_event_is_not_handled(start_demo: StartDemo, tmp_path: Path) -> None:
    # Given orders without a single subscription
    path = _code_in_services(
        tmp_path, "orders", "import aevents; aevents.subscribe_to = lambda event_type, event_handler: None"
    )

    # When the demo runs
    demo = start_demo(PYTHONPATH=path)

    # Then it says what is missing and what is too much
    assert demo.wait() == 1, demo.everything
    assert "did not happen: orders handled user-created shop.add_customer" in demo.text
    assert "should not have happened: orders unhandled user-created" in demo.text
    assert ALL_IS_WELL not in demo.text
    demo.assert_nothing_is_left()


def test_whichever_process_is_killed_each_order_is_charged_once(start_demo: StartDemo) -> None:
    # When each process is killed again and again
    demo = start_demo("--crash", PYTHONDEVMODE="1")

    # Then everything has come, once, and nothing is left behind
    assert demo.wait() == 0, demo.everything
    assert demo.stderr == ""
    found = re.search(r"\n   emitted ([\d,]+), handled ([\d,]+), lost 0, twice 0\n", demo.text)
    assert found is not None, demo.text
    assert found[1] == found[2]
    assert int(found[1].replace(",", "")) >= 200
    killed = re.findall(r"(\w+) +killed +pid \d+", demo.text)
    assert set(killed) == {"payments", "emitter", "worker"}
    assert f"after {len(killed)} kills -9; charged though rolled back: 0\n" in demo.text
    demo.assert_nothing_is_left()


@pytest.mark.faults
def test_the_crash_demo_fails_where_an_order_is_charged_twice(start_demo: StartDemo, tmp_path: Path) -> None:
    # Given a handler that does everything twice
    twice = (
        "import aevents; tell = aevents.subscribe_to;"
        " aevents.subscribe_to = lambda type: lambda handler:"
        " tell(type, lambda payload: (handler(payload), handler(payload)), name='twice')"
    )
    path = _code_in_services(tmp_path, "crash", twice)

    # When the demo runs
    demo = start_demo("--crash", PYTHONPATH=path)

    # Then it says how often, and fails
    assert demo.wait() == 1, demo.everything
    assert re.search(r"emitted ([\d,]+), handled \1, lost 0, twice [1-9]\d*\n", demo.text), demo.text
    assert "Each order that was committed should have been charged once" in demo.text
    demo.assert_nothing_is_left()


def test_without_the_extra_one_line_says_what_to_install() -> None:
    code = (
        "import runpy, sys; sys.modules['uvicorn'] = None;"
        " runpy.run_module('aevents.demo', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == 'The demo needs uvicorn: pip install "aevents[demo]"\n'


def _code_in_services(folder: Path, service: str, code: str) -> str:
    """Return a PYTHONPATH with which the processes of one service run `code` when they start."""
    settings = f"aevents.demo.{service}.settings"  # "crash" has both services
    (folder / "sitecustomize.py").write_text(
        f"import os\nif os.environ.get('DJANGO_SETTINGS_MODULE') == {settings!r}:\n    {code}\n"
    )
    return os.pathsep.join(filter(None, (str(folder), os.getcwd(), os.environ.get("PYTHONPATH"))))


def _figures(text: str) -> dict[str, list[str]]:
    """Return the rows of the summary by their first column."""
    rows = [
        re.split(r"[ │┃]+", line.strip(" │┃")) for line in text.splitlines() if "│" in line or "┃" in line
    ]
    return {first: rest for first, *rest in rows}


def _without_escapes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def _poll(condition: Callable[[], bool]) -> None:
    ends = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def _read(stdout: int) -> bytes:
    try:
        return os.read(stdout, 65536)
    except OSError as error:
        if error.errno != errno.EIO:  # how Linux ends a terminal that nobody has open any more
            raise
        return b""


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # ended meanwhile, or somebody else's
        return b""
