"""Pages of Markdown, read and followed as a reader would: their blocks, tables, commands and services.

page = Page(DOCS / "servers.md")
page.files()                     # the Python blocks whose first line is a file's name
page.assert_all_were_run()       # every block was taken by the test

A console block holds commands and what they print; `...` stands for anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator, Mapping
from pathlib import Path

import aevents
from tests.peers import eventually

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_RUNS_WITHIN_S = 60.0  # generous: it ends a test that is broken

# What the environment of the tests has done already; a test may not reach for a package index.
INSTALLING = {"python -m venv .venv && . .venv/bin/activate", "pip install ../aevents uvicorn"}

# ---------------------------------------------------------------------------- pages and their blocks


@dataclasses.dataclass(eq=False)
class Block:
    """One fenced block: where it stands, its language, its text and the comment right above it."""

    where: str
    language: str
    text: str
    comment: str

    @property
    def file(self) -> str | None:
        """The file that this block is, by its first line."""
        named = re.match(r"# ([\w/]+\.py)$", self.text.partition("\n")[0])
        return named[1] if named else None


class Page:
    """A Markdown file as a list of blocks and comments, and which of the blocks were run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.steps = list(_steps(path.name, self.text))
        self._left = [step for step in self.steps if isinstance(step, Block)]

    def take(self, block: Block) -> Block:
        self._left.remove(block)
        return block

    def next(self, language: str) -> Block:
        """Take the first block of this language that is left."""
        return self.take(next(block for block in self._left if block.language == language))

    def files(self) -> dict[str, str]:
        """Take every file; blocks with the same name are one file, one after the other."""
        files: dict[str, str] = {}
        for block in [block for block in self._left if block.file]:
            files[str(block.file)] = files.get(str(block.file), "") + self.take(block).text + "\n\n"
        return files

    def tables(self) -> list[list[list[str]]]:
        """Return the page's tables: rows of cells, without the head."""
        found = re.findall(r"(?:^\|.*\n?)+", self.text, re.MULTILINE)
        return [[_cells(line) for line in table.splitlines()[2:]] for table in found]

    def assert_all_were_run(self) -> None:
        assert not [block.where for block in self._left]


def _steps(name: str, text: str) -> Iterator[Block | str]:
    lines = enumerate(text.splitlines(), 1)
    comment = ""
    for number, line in lines:
        if line.startswith("```"):
            language = line.strip("`")
            body = "\n".join(iter(lambda: next(lines)[1], "```"))
            if not language.startswith("{"):  # a directive is Sphinx's affair
                yield Block(f"{name}:{number}", language, body, comment)
        elif line.startswith("<!--"):
            comment = line.removeprefix("<!-- ").removesuffix(" -->")
            yield comment
            continue
        comment = ""


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in line.strip("|").split(" | ")]


def is_shown(shown: str, real: str) -> bool:
    """Tell whether `real` is what the page shows, where `...` stands for anything."""
    return re.fullmatch(_pattern(shown), real.strip(), re.DOTALL) is not None


def _pattern(shown: str) -> str:
    return ".*".join(re.escape(part) for part in shown.strip().split("..."))


# ------------------------------------------------------------------------- commands and the services


def environment(folder: Path) -> dict[str, str]:
    """The reader's shell: this Python first on the path, no settings chosen yet."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("DJANGO_", "PYTEST_"))}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env["PYTHONPATH"] = str(Path(aevents.__file__).parent.parent)
    env["PYTHONUNBUFFERED"] = "1"
    env["PWD"] = str(folder)
    return env


def run(command: str, folder: Path) -> str:
    """Run a command line of the page; return what it prints."""
    done = subprocess.run(
        ["sh", "-ec", command],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_RUNS_WITHIN_S,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}"
    return done.stdout


def curl(command: str) -> tuple[int, str]:
    """Do what `curl` does with `-d` and `-H`, on machines without it too."""
    data, headers, url = None, {}, ""
    words = iter(shlex.split(command)[1:])
    for word in words:
        if word == "-d":
            data = next(words)
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        else:
            url = word
    return ask(url, data, **headers)


def ask(url: str, data: str | None = None, /, **headers: str) -> tuple[int, str]:
    """GET the URL, or POST the data to it; return status and body."""
    parts = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_RUNS_WITHIN_S)
    with contextlib.closing(connection):
        if data is None:
            connection.request("GET", parts.path)
        else:
            form = {"content-type": "application/x-www-form-urlencoded"}
            connection.request("POST", parts.path, data.encode(), {**form, **headers})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


class Service:
    """A service of the page as a process, with what its terminal shows in a file."""

    def __init__(self, command: list[str], folder: Path, port: int, log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment(folder),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            eventually(lambda: self._answers(port), within_s=_RUNS_WITHIN_S, what=self.output)
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    @property
    def output(self) -> str:
        return self._log.read_text()

    def stop(self) -> None:
        """Press Ctrl+C."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(_RUNS_WITHIN_S)
        finally:
            self._process.kill()

    def _answers(self, port: int) -> bool:
        assert self._process.poll() is None, self.output
        try:
            return bool(ask(f"http://127.0.0.1:{port}/"))
        except (OSError, http.client.HTTPException):
            return False


@contextlib.contextmanager
def free_ports(count: int) -> Iterator[list[int]]:
    """Ports that nobody else is given meanwhile: bound here, never listened on."""
    with contextlib.ExitStack() as stack:
        reserved = [stack.enter_context(socket.socket()) for _ in range(count)]
        for reservation in reserved:
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reservation.bind(("127.0.0.1", 0))
        yield [reservation.getsockname()[1] for reservation in reserved]


def write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


# -------------------------------------------------------------------------------------- their reader


class Reader:
    """Follows a page from top to bottom: writes its files, types its commands, compares."""

    def __init__(self, page: Page, folder: Path, ports: Mapping[str, int]) -> None:
        self._page = page
        self._folder = folder
        self._logs = folder
        self._ports = ports
        self._services: dict[str, Service] = {}
        self._seen: dict[str, int] = {}

    def follow(self) -> None:
        try:
            for step in self._page.steps:
                if isinstance(step, Block):
                    self._do(self._page.take(step))
                elif step.startswith("stop: "):
                    self._services.pop(step.removeprefix("stop: ")).stop()
        finally:
            for service in self._services.values():
                service.stop()

    def _do(self, block: Block) -> None:
        if block.file:
            write(self._folder, {block.file: self._with_ports(block.text) + "\n"})
        elif block.language == "console":
            for command, shown in commands(block):
                self._type(command, shown)
        elif block.language == "text" and block.comment.startswith("seen: "):
            self._see(block.comment.removeprefix("seen: "), block.text)
        else:
            raise AssertionError(f"what is {block.where}?")

    def _type(self, command: str, shown: str) -> None:
        if command in INSTALLING:
            return
        real = ""
        served = re.fullmatch(r"python -m uvicorn (\w+)\.asgi:application --port (\d+)", command)
        if served:
            name, port = served[1], self._ports[served[2]]
            assert name not in self._services, f"{name} runs already"
            words = [sys.executable, *self._with_ports(command).split()[1:]]
            self._services[name] = Service(words, self._folder, port, self._logs / f"{name}.log")
        elif command.startswith("curl "):
            real = curl(self._with_ports(command))[1]
        elif command == "mkdir shop && cd shop":
            run(command, self._folder)
            self._folder /= "shop"
        else:
            real = run(self._with_ports(command), self._folder)
        assert is_shown(self._with_ports(shown), real), f"{command}\nshown: {shown}\nreal: {real}"

    def _see(self, name: str, shown: str) -> None:
        """Find it on the terminal, below what was seen there before."""
        service = self._services[name]
        pattern = re.compile(_pattern(self._with_ports(shown)), re.DOTALL)
        found = eventually(
            lambda: pattern.search(service.output, self._seen.get(name, 0)),
            what=f"{shown}\nis not in what {name} shows:\n{service.output}",
        )
        self._seen[name] = found.end()

    def _with_ports(self, text: str) -> str:
        for shown, real in self._ports.items():
            text = text.replace(f":{shown}/", f":{real}/").replace(f"--port {shown}", f"--port {real}")
            text = text.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{real}")
        return text


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Give each command of a console block with what the page shows below it."""
    head, *entries = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
    assert not head, block.where
    for entry in entries:
        command, _, shown = entry.partition("\n")
        yield command, shown
