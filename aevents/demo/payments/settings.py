"""The settings of payments."""

from aevents.demo.devops.settings import *  # noqa: F403 - all of it is meant for the services

ROOT_URLCONF = "aevents.demo.payments.urls"
INSTALLED_APPS = ["aevents", "aevents.demo.payments.billing", "aevents.demo.payments.loyalty"]

AEVENTS = {
    "SERVICE": "payments",
    "SERVICES": "aevents.demo.devops.events.SERVICES",
    "SUBSCRIPTIONS": "aevents.demo.devops.events.SUBSCRIPTIONS",
    # Nobody signs events here, and only this machine can reach the ports; unset, unsigned events are
    # refused where DEBUG is off.
    "UNSIGNED": "accept",
    "SCHEDULE": [1] * 16,  # soon, as nobody wants to watch for three days
}
