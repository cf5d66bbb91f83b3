"""What is bad in the world, faults 35 to 50 of the catalogue: which test shows what becomes of each.

The numbers are those of the list of faults that this project is tested against; 1 to 34 and 51 to 54 are the
network's, the databases' and the processes'.
"""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

FAULTS: dict[int, tuple[str, dict[str, list[str]]]] = {
    35: (
        "a body over 1 MiB, without a length or with a wrong one, in chunks of single bytes",
        {
            "test_bad_requests.py": [
                "test_one_byte_more_than_a_mebibyte_is_too_much",
                "test_a_body_without_a_length_is_none",
                "test_of_a_body_that_is_longer_than_it_says_the_rest_is_none",
                "test_two_lengths_are_never_two_events",
                "test_one_byte_too_many_is_too_much_byte_by_byte_as_well",
                "test_of_a_body_without_end_little_is_kept_in_memory",
            ],
            "test_views.py": [
                "test_of_a_body_without_end_one_byte_over_the_limit_is_kept_and_8_mib_more_at_most_are_read"
            ],
            "test_asgi.py": ["test_of_a_body_without_end_no_more_is_kept_than_allowed_and_8_mib_are_read_on"],
        },
    ),
    36: (
        "a compressed request",
        {
            "test_servers.py": ["test_bad_input_gets_the_right_4xx"],
            "test_wire.py": ["test_another_content_type_or_encoding_is_refused_with_415"],
        },
    ),
    37: (
        "JSON 100,000 deep, integers of 5,000 digits, equal keys, UTF-16, a BOM, NaN",
        {
            "test_odd_json.py": [
                "test_the_page_says_what_a_body_becomes",
                "test_the_data_of_a_cloudevent_becomes_the_same",
            ],
            "test_wire.py": ["test_a_body_that_is_no_event_is_refused_with_400"],
            "test_payload.py": ["test_only_strict_json_in_strict_utf_8_is_decoded"],
            "test_fuzz.py": ["test_bodies_of_a_mebibyte_are_too"],
        },
    ),
    38: (
        "JSON of the wrong shape; the payload in no log",
        {
            "test_wire.py": ["test_a_body_that_is_no_event_is_refused_with_400"],
            "test_receiver.py": ["test_a_refused_event_is_warned_of_without_what_it_held"],
            "test_logging.py": ["test_no_log_holds_a_payload_or_a_secret"],
        },
    ),
    39: (
        "signatures that are none, a prefix of the right one, 10,000 of them, the header twice",
        {
            "test_signature.py": [
                "test_what_is_no_signature_of_ours_is_refused",
                "test_the_beginning_of_the_right_signature_is_refused",
                "test_of_ten_thousand_signatures_the_first_16_are_looked_at",
                "test_whatever_arrives_is_refused_with_401",
            ],
            "test_senders.py": ["test_signatures_are_verified_through_the_view"],
            "test_bad_requests.py": [
                "test_the_signature_twice_is_none_of_ours",
                "test_a_repeated_header_is_never_a_500",
            ],
            "test_many_keys.py": ["test_whoever_can_sign_nothing_costs_16_mib_of_hashing_and_no_more"],
        },
    ),
    40: (
        "one bit changed; the same JSON written anew",
        {
            "test_signature.py": [
                "test_one_flipped_bit_is_refused",
                "test_one_flipped_bit_of_the_signature_is_refused",
                "test_the_same_json_written_anew_is_refused",
            ]
        },
    ),
    41: (
        "a time that is no plain number of these five minutes",
        {
            "test_signature.py": [
                "test_an_older_or_younger_message_is_refused_and_told_of_the_clock",
                "test_a_timestamp_that_is_no_plain_number_of_these_minutes_is_refused",
            ]
        },
    ),
    42: (
        "a message that was captured, sent again",
        {
            "test_captured.py": [
                "test_a_captured_message_has_no_second_effect_whatever_of_it_is_changed",
                "test_a_captured_message_in_another_s_dress_is_none",
            ],
            "test_signature.py": ["test_an_older_or_younger_message_is_refused_and_told_of_the_clock"],
        },
    ),
    43: (
        "50 copies at once; ids that differ in case, blanks or their end",
        {
            "test_captured.py": [
                "test_of_fifty_copies_that_come_at_one_moment_one_has_an_effect",
                "test_ids_that_are_almost_the_same_are_of_two_events",
                "test_what_is_longer_than_an_id_may_be_is_not_cut_but_refused",
            ],
            "test_inbox.py": ["test_copies_that_arrive_at_one_moment_have_one_effect"],
        },
    ),
    44: (
        "headers with underscores",
        {
            "test_bad_requests.py": ["test_a_header_with_an_underscore_is_not_the_one_with_a_dash"],
            "test_senders.py": ["test_a_header_with_an_underscore_is_not_the_one_with_a_dash"],
            "test_views.py": ["test_a_header_with_underscores_is_not_taken_for_ours"],
        },
    ),
    45: (
        "headers that contradict the body, or are missing",
        {
            "test_wire.py": [
                "test_a_ce_type_that_says_otherwise_than_the_body_is_refused",
                "test_a_ce_id_that_differs_from_the_webhook_id_is_refused",
                "test_the_id_comes_from_either_header_or_is_new",
            ]
        },
    ),
    46: (
        "types that write lines, colours or HTML",
        {
            "test_event.py": ["test_anything_else_is_no_type"],
            "test_logging.py": ["test_what_comes_from_outside_cannot_write_lines_or_colours"],
            "test_admin.py": [
                "test_nothing_from_outside_is_taken_for_html",
                "test_what_cannot_be_seen_is_shown_as_an_escape",
            ],
            "test_odd_input.py": ["test_what_can_be_no_type_is_refused_at_emit_and_on_arrival"],
        },
    ),
    47: (
        "secrets that are none",
        {
            "test_signature.py": [
                "test_what_is_no_secret_is_refused_and_never_repeated",
                "test_the_text_of_a_secret_is_in_no_mistake_repr_or_log",
            ],
            "test_trust.py": ["test_a_server_does_not_start_with_a_wrong_secret_and_a_command_does"],
            "test_senders.py": ["test_a_service_with_wrong_settings_takes_nothing_and_its_log_says_where"],
        },
    ),
    48: (
        "handlers that raise anything, hang, or return what nobody can hold",
        {
            "test_receiver.py": [
                "test_whatever_a_handler_raises_is_its_own_failure",
                "test_a_failing_handler_stops_no_other_and_only_it_runs_again",
            ],
            "test_inbox.py": [
                "test_a_handler_that_takes_too_long_has_failed",
                "test_a_handler_that_still_runs_is_taken_over_and_runs_once",
            ],
            "test_odd_input.py": ["test_what_a_handler_returns_is_neither_answered_nor_kept"],
        },
    ),
    49: (
        "URLs that lead elsewhere: they come from the settings alone",
        {
            "test_http_transport.py": [
                "test_a_url_that_cannot_be_used_is_refused",
                "test_a_redirect_is_never_followed",
                "test_proxies_of_the_environment_are_left_aside",
            ],
            "test_network.py": ["test_a_redirect_to_an_internal_host_makes_no_connection_there"],
            "test_trust.py": ["test_nothing_goes_in_the_open_to_another_host"],
            "test_tls.py": ["test_a_certificate_for_another_host_is_refused"],
            "test_odd_input.py": [
                "test_only_http_leads_out_of_the_process",
                "test_a_url_in_the_database_is_no_destination",
                "test_a_url_that_arrives_is_asked_for_nothing",
            ],
        },
    ),
    50: (
        "a log, or a listener, that fails or is slow",
        {
            "test_log_sinks.py": [
                "test_what_arrives_is_answered_and_handled",
                "test_what_is_emitted_arrives_and_a_loss_is_told_to_the_caller",
            ],
            "test_logging.py": [
                "test_a_listener_that_fails_stops_nobody_and_is_logged",
                "test_a_peer_is_warned_of_once_a_minute",
            ],
        },
    ),
}


@functools.cache
def _tests_in(file: str) -> set[str]:
    nodes = ast.walk(ast.parse((Path(__file__).parent / file).read_text()))
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}


@pytest.mark.parametrize("number", FAULTS)
def test_each_fault_has_tests_that_there_are(number: int) -> None:
    _, named = FAULTS[number]
    assert named
    for file, tests in named.items():
        assert tests
        assert not [test for test in tests if test not in _tests_in(file) or not test.startswith("test_")]


def test_no_fault_is_left_out() -> None:
    assert list(FAULTS) == [*range(35, 51)]
