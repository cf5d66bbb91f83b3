"""The settings of accounts."""

from aevents.demo.devops.settings import *  # noqa: F403 - all of it is meant for the services

ROOT_URLCONF = "aevents.demo.accounts.urls"
INSTALLED_APPS = ["aevents", "aevents.demo.accounts.users"]

AEVENTS = {
    "SERVICE": "accounts",
    "SERVICES": "aevents.demo.devops.events.SERVICES",
    "SUBSCRIPTIONS": "aevents.demo.devops.events.SUBSCRIPTIONS",
    # Nobody signs events here, and only this machine can reach the ports; unset, unsigned events are
    # refused where DEBUG is off.
    "UNSIGNED": "accept",
    # Soon, as nobody wants to watch for three days; but not before the next scene has begun.
    "SCHEDULE": [10] * 16,
}
