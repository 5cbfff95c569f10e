from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from unidle_collector.shards.progress import GAP_NS, HOLD_NS, Message, Pace, Progress

SECOND_NS = 10**9


def offered(progress: Progress, position: int, until_s: float | None) -> Message:
    message = Message(position, ("n", "b", position), None if until_s is None else int(until_s * SECOND_NS))
    progress.offer(message)
    if until_s is not None:
        progress.remember([("n", "b", position)])
    return message


def test_the_position_stands_before_the_first_message_that_is_not_booked() -> None:
    progress = Progress(10)
    for position, until_s in ((12, 5), (13, 30), (15, 6)):
        offered(progress, position, until_s)
    assert progress.mark(20 * SECOND_NS) == (12, '[["n", "b", [[12, 12]]]]')
    assert progress.waiting == 2
    assert progress.mark(30 * SECOND_NS)[0] == 15
    assert json.loads(progress.mark(30 * SECOND_NS)[1]) == [["n", "b", [[12, 13], [15, 15]]]]


def test_a_message_that_has_no_answer_yet_holds_the_position() -> None:
    progress = Progress()
    message = offered(progress, 1, None)
    offered(progress, 2, 5)
    assert progress.mark(100 * SECOND_NS)[0] == 0
    message.until_ns = 0
    assert progress.mark(100 * SECOND_NS)[0] == 2


def test_a_row_belongs_to_the_step_it_is_nearest_to() -> None:
    progress = Progress()
    offered(progress, 1, 20.4)
    offered(progress, 2, 20.6)
    assert progress.mark(20 * SECOND_NS)[0] == 1


def test_what_was_read_but_not_booked_is_new_after_a_takeover() -> None:
    first = Progress()
    offered(first, 1, 5)
    offered(first, 2, 50)
    assert first.seen("n", "b", 2)
    again = Progress(*first.mark(20 * SECOND_NS))
    assert again.position == 1
    assert again.seen("n", "b", 1)
    assert not again.seen("n", "b", 2)


@given(st.lists(st.integers(0, 100), max_size=30), st.lists(st.integers(0, 100), max_size=5))
def test_held_are_exactly_those_up_to_the_position(until_s: list[int], reached_s: list[int]) -> None:
    progress = Progress()
    for position, seconds in enumerate(until_s, 1):
        offered(progress, position, seconds)
    for seconds in sorted(reached_s):
        position, held = progress.mark(seconds * SECOND_NS)
        again = Progress(position, held)
        assert all(again.seen("n", "b", n) == (n <= position) for n in range(1, len(until_s) + 1))
        assert all(until <= seconds for until in until_s[:position])


def test_time_follows_the_messages_and_never_goes_back() -> None:
    pace = Pace(100 * SECOND_NS)
    pace.see(103 * SECOND_NS)
    pace.see(101 * SECOND_NS)
    assert pace() == 103 * SECOND_NS


def test_after_an_outage_time_stands_still_until_the_nodes_have_had_theirs() -> None:
    pace = Pace(100 * SECOND_NS)
    back_ns = 100 * SECOND_NS + GAP_NS + 1
    for passed_ns in range(0, HOLD_NS, SECOND_NS):
        pace.see(back_ns + passed_ns)
    assert pace() == 100 * SECOND_NS
    pace.see(back_ns + HOLD_NS)
    assert pace() == back_ns + HOLD_NS


def test_time_goes_on_where_nothing_more_can_be_taken_in_without() -> None:
    pace = Pace(100 * SECOND_NS)
    for _ in range(20):
        pace.creep(SECOND_NS)
    assert pace() == 120 * SECOND_NS
    pace.see(110 * SECOND_NS)
    assert pace() == 120 * SECOND_NS
