"""`python -m aevents.demo --crash`: orders tells payments of every order, while somebody kills both.

One app for both services, with nothing in it that guards against losing or doubling: what comes out right
does so by `OUTBOX` and `INBOX`.
"""
