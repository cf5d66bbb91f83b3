"""What arrives, made up by a fuzzer: bytes in, and nothing out but an event or a refusal.

A short run is `tests/test_fuzz.py`, the long one `tox -e fuzz`; `python -m tests.fuzz --help` for more.
"""
