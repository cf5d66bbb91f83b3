"""Fuzzes with libFuzzer, by atheris: seeds in, a folder of what they led to out.

    python -m tests.fuzz fuzz decoder FOLDER --inputs 1000000 [--seed 1] [--most-bytes 4096]
    python -m tests.fuzz measure FOLDER...

An input that breaks a promise ends it with its traceback; it is kept in FOLDER as `crash-...`, and
`python -m tests.fuzz try decoder FILE` runs it again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
_LARGE_BYTES = 1024 * 1024 + 4096  # with its headers, and a byte too many
_TIMEOUT_S = 10  # of one input


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    fuzz = commands.add_parser("fuzz", help="make inputs up until there were enough, or one breaks a promise")
    fuzz.add_argument("target")
    fuzz.add_argument("folder", type=Path)
    fuzz.add_argument("--inputs", type=int, default=100_000)
    fuzz.add_argument("--seed", type=int, default=1)
    fuzz.add_argument("--most-bytes", type=int, default=4096)
    fuzz.add_argument("--most-seconds", type=int, default=0)
    attempt = commands.add_parser("try", help="run one input again")
    attempt.add_argument("target")
    attempt.add_argument("file", type=Path)
    measure = commands.add_parser("measure", help="tell the slowest and the largest input of these folders")
    measure.add_argument("folders", type=Path, nargs="*")
    options = parser.parse_args()
    if options.command == "fuzz":
        _fuzz(options)
        return
    _set_up()
    from tests.fuzz import measuring, seeds, targets

    if options.command == "try":
        targets.TARGETS[options.target](options.file.read_bytes())
    else:
        inputs = {*seeds.small(), *seeds.large(), *_files_in(options.folders)}
        print(measuring.report(inputs))


def _fuzz(options: argparse.Namespace) -> None:
    import atheris  # type: ignore[import-untyped, import-not-found, unused-ignore]

    with atheris.instrument_imports(include=["aevents"]):  # type: ignore[no-untyped-call, unused-ignore]
        _set_up()
    from tests.fuzz import measuring, seeds, targets

    folder: Path = options.folder
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    is_large = options.most_bytes > 64 * 1024
    for data in (*seeds.small(), *(seeds.large() if is_large else ())):
        (corpus / hashlib.sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
    dictionary = folder / "words"
    dictionary.write_text("".join(f'"{_escaped(word)}"\n' for word in seeds.WORDS))

    def note(data: bytes, took_s: float) -> None:
        (folder / "slowest").write_bytes(data)

    arguments = [
        sys.argv[0],
        f"-runs={options.inputs}",
        f"-seed={options.seed}",
        f"-max_len={options.most_bytes}",
        f"-dict={dictionary}",
        f"-artifact_prefix={folder}{os.sep}",
        f"-timeout={_TIMEOUT_S}",
        f"-max_total_time={options.most_seconds}",
        f"-len_control={0 if is_large else 100}",  # large ones at once, or small ones first
        "-rss_limit_mb=0",
        "-print_final_stats=1",
        str(corpus),
    ]
    atheris.Setup(arguments, measuring.watched(targets.TARGETS[options.target], note))
    atheris.Fuzz()


def _set_up() -> None:
    django.setup()
    from django.conf import settings

    from aevents import receiver  # noqa: F401 - here it is instrumented
    from tests.fuzz import targets

    settings.AEVENTS = targets.AEVENTS
    logging.disable(logging.CRITICAL)


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _files_in(folders: list[Path]) -> Iterator[bytes]:
    for folder in folders:
        for file in sorted(folder.rglob("*")):
            with contextlib.suppress(IsADirectoryError):
                yield file.read_bytes()


if __name__ == "__main__":
    main()
