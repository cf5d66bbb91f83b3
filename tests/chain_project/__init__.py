"""A service that answers events with events, run as a process by `tests/test_chains.py`.

Its name is in CHAIN_SERVICE, the map of all services in the JSON file CHAIN_MAP.
"""
