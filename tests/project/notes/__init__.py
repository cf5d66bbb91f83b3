"""An app as users write it: its handlers stand in `events.py` and write rows."""
