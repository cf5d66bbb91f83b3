"""The settings of orders and payments; SERVICE says which one this is."""

import os

from aevents.demo.devops.settings import *  # noqa: F403 - all of it is meant for the services

ROOT_URLCONF = "aevents.demo.payments.urls"
INSTALLED_APPS = ["aevents", "aevents.demo.crash"]

AEVENTS = {
    "SERVICE": os.environ["SERVICE"],
    "SERVICES": "aevents.demo.devops.events.SERVICES",
    "SUBSCRIPTIONS": "aevents.demo.devops.events.SUBSCRIPTIONS",
    "OUTBOX": True,  # the order and its event are committed together, or not at all
    "INBOX": True,  # what arrives is stored before it is answered, and each handler has its effect once
    "RELAY": os.environ["SERVICE"] == "payments",  # orders has a worker of its own for that
    # Nobody signs events here, and only this machine can reach the ports; unset, unsigned events are
    # refused where DEBUG is off.
    "UNSIGNED": "accept",
    "SCHEDULE": [1] * 60,  # soon, as nobody wants to watch for three days
    "LIMITS": {"ATTEMPT_S": 1.0, "CONNECT_S": 0.5, "ANSWER_S": 0.8},
}
