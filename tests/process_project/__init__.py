"""A small service that emits: under every server, in forks, in commands and at the end of a process."""
