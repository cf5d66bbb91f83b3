"""The settings of orders."""

from aevents.demo.devops.settings import *  # noqa: F403 - all of it is meant for the services

ROOT_URLCONF = "aevents.demo.orders.urls"
INSTALLED_APPS = ["aevents", "aevents.demo.orders.shop"]

AEVENTS = {
    "SERVICE": "orders",
    "SERVICES": "aevents.demo.devops.events.SERVICES",
    "SUBSCRIPTIONS": "aevents.demo.devops.events.SUBSCRIPTIONS",
    # Nobody signs events here, and only this machine can reach the ports; unset, unsigned events are
    # refused where DEBUG is off.
    "UNSIGNED": "accept",
}
