"""A user's tests with `manage.py test`: see `tests/test_testing_kit.py`, which runs them in a process."""

# ruff: noqa: PT009, PT027, S310 - the way of Django's own test cases is what is shown here

import json
import threading
import unittest
import urllib.request

from django.db import transaction
from django.test import (
    AsyncClient,
    LiveServerTestCase,
    SimpleTestCase,
    TestCase,
    TransactionTestCase,
    override_settings,
)

from aevents import InvalidEvent, aemit, emit
from aevents.testing import EmittedMixin, adeliver, deliver
from shop import events
from shop.models import Order
from shop.services import place


class InATransaction(EmittedMixin, TestCase):
    @classmethod
    def setUpTestData(cls):
        place("test data")

    def setUp(self):  # which calls no super
        place("set up")

    def texts(self):
        return [payload["text"] for payload in self.emitted.payloads("order-placed")]

    def test_what_was_emitted_in_this_test_is_there(self):
        place("one")
        self.assertEqual(self.texts(), ["set up", "one"])

    def test_and_nothing_of_another(self):
        self.assertEqual(self.texts(), ["set up"])

    def test_what_was_rolled_back_is_gone(self):
        with self.assertRaises(ValueError):
            place("gone", then_fail=True)
        self.assertEqual(self.texts(), ["set up"])

    def test_hooks_may_be_run(self):
        with self.captureOnCommitCallbacks(execute=True) as callbacks:
            emit("told", {"n": 1})
            self.assertEqual(callbacks, [])
            transaction.on_commit(lambda: emit("told", {"n": 2}))
            place("one")
        self.assertEqual(self.emitted.types(), ["order-placed", "told", "order-placed", "told"])

    def test_handlers_run_here(self):
        Order.objects.create(text="bread")
        deliver("stock-arrived", {"text": "bread"})
        self.assertTrue(Order.objects.filter(text="filled").exists())
        self.assertIn(threading.main_thread(), [entry[0] for entry in events.seen])

    async def test_async_tests_too(self):
        await Order.objects.acreate(text="bread")
        await adeliver("stock-arrived", {"text": "bread"})
        await aemit("told", {})
        self.assertTrue(await Order.objects.filter(text="filled").aexists())
        self.assertEqual(self.emitted.types()[-1], "told")

    async def test_what_is_posted_to_the_async_endpoint_is_handled_here(self):
        await Order.objects.acreate(text="bread")
        body = {"event_type": "stock-arrived", "payload": {"text": "bread"}}
        response = await AsyncClient().post("/events/", body, "application/json")
        self.assertEqual(response.status_code, 200)
        self.assertTrue(await Order.objects.filter(text="filled").aexists())

    def test_a_wrong_call_raises(self):
        with self.assertRaises(InvalidEvent):
            emit("told", [])


class WithRealTransactions(EmittedMixin, TransactionTestCase):
    def test_commits_and_rollbacks(self):
        place("kept")
        with self.assertRaises(ValueError):
            place("gone", then_fail=True)
        deliver("stock-arrived", {"text": "kept"})
        self.assertEqual(sorted(self.emitted.types()), ["order-filled", "order-placed", "told"])
        self.assertTrue(Order.objects.filter(text="filled").exists())


class WithoutDatabase(EmittedMixin, SimpleTestCase):
    def test_emit_and_deliver(self):
        emit("told", {})
        deliver("no-database", {})
        self.assertEqual(self.emitted, [("told", {})])


class WithoutDjango(EmittedMixin, unittest.IsolatedAsyncioTestCase):
    async def test_emit_and_deliver(self):
        await aemit("told", {})
        await adeliver("no-database", {})
        self.assertEqual(self.emitted, [("told", {})])


@override_settings(ALLOWED_HOSTS=["*"])
class WithALiveServer(EmittedMixin, LiveServerTestCase):
    def test_what_the_server_emits_and_handles_is_seen(self):
        with urllib.request.urlopen(f"{self.live_server_url}/orders/", timeout=10) as response:
            self.assertEqual(json.load(response), {"outcomes": ["queued", "queued"]})
        Order.objects.create(text="bread")
        body = {"event_type": "stock-arrived", "payload": {"text": "bread"}}
        request = urllib.request.Request(
            f"{self.live_server_url}/events/", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            self.assertEqual(response.status, 200)
        self.assertEqual(sorted(self.emitted.types()), ["order-filled", "order-placed", "told"])
        self.assertTrue(Order.objects.filter(text="filled").exists())


class TheMixin(SimpleTestCase):
    def test_it_must_stand_first(self):
        with self.assertRaisesRegex(TypeError, "Wrong: EmittedMixin must stand before the test case"):

            class Wrong(TestCase, EmittedMixin):
                pass
