"""XIDs and SXids that a dcgm-exporter counts: each increase is one event, whatever was there before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.agent.scripted_server import Reply, serving

from unidle_agent.dcgm import parse_page
from unidle_agent.dcgm_faults import Counted, News
from unidle_agent.faults import Faults
from unidle_agent.sample import merge
from unidle_agent.sources.dcgm_exporter import DcgmExporterSource
from unidle_agent.wire import Event, switch_and_link

GPU = 'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-0",Hostname="n"} 50\n'
TOTAL = 'DCGM_EXP_XID_ERRORS_TOTAL{{gpu="{gpu}",UUID="GPU-{gpu}",Hostname="n",xid="{xid}"}} {value}\n'
OLD = 'DCGM_FI_DEV_NVSWITCH_{what}_ERRORS{{nvswitch="nvswitch2",Hostname="n"}} {value}\n'
NEW = 'DCGM_FI_DEV_SXID_{what}_ERROR{{nvswitch="2",nvlink="30",hostname="n"}} {value}\n'
LAST = 'DCGM_FI_DEV_XID_ERRORS{{gpu="0",UUID="GPU-0",Hostname="n"}} {value}\n'


def total(xid: int, value: int, gpu: int = 0) -> str:
    return TOTAL.format(gpu=gpu, xid=xid, value=value)


def told(*pages: str, whole: bool = True) -> list[list[tuple[str, str, int]]]:
    """(GPU, kind, code) of the events of each page."""
    news = News()
    return [
        [(e.gpu, e.kind, e.code) for e in news.events(parse_page(GPU + page).faults, 7, whole=whole)]
        for page in pages
    ]


def test_an_increase_is_an_event_of_its_gpu_and_code() -> None:
    assert told(total(31, 4), total(31, 4), total(31, 6) + total(13, 1, gpu=1)) == [
        [],
        [],
        [("GPU-0", "xid", 31), ("GPU-1", "xid", 13)],
    ]


def test_the_first_xid_of_a_gpu_begins_a_series_and_is_an_event() -> None:
    assert told("", total(79, 1)) == [[], [("GPU-0", "xid", 79)]]


def test_counts_that_were_there_before_anybody_looked_are_not_new() -> None:
    assert told(total(79, 3) + OLD.format(what="FATAL", value=20034)) == [[]]


def test_an_exporter_that_was_started_anew_tells_nothing_until_its_counts_grow() -> None:
    both = total(31, 5) + total(48, 1)
    assert told(both, total(31, 2), total(31, 3)) == [[], [], [("GPU-0", "xid", 31)]]
    assert told(both, total(31, 2) + total(62, 1)) == [[], []], "62 may be what its host engine remembers"
    assert told(both, "", total(31, 1)) == [[], [], [("GPU-0", "xid", 31)]]


def test_a_page_that_lost_lines_is_no_restart() -> None:
    news = News()
    for page, whole, expected in (
        (total(31, 5), True, []),
        ("", False, []),
        (total(31, 5), True, []),
        (total(31, 6), True, [31]),
    ):
        assert [e.code for e in news.events(parse_page(GPU + page).faults, 7, whole=whole)] == expected


def test_an_sxid_of_either_generation_is_told_when_it_changes_with_its_class_and_switch() -> None:
    for form in (OLD, NEW):
        assert told(
            form.format(what="FATAL", value=0) + form.format(what="NON_FATAL", value=0),
            form.format(what="FATAL", value=20034) + form.format(what="NON_FATAL", value=12028),
            form.format(what="FATAL", value=20034) + form.format(what="NON_FATAL", value=12028),
            form.format(what="FATAL", value=23001) + form.format(what="NON_FATAL", value=0),
        ) == [[], [("*", "sxid_fatal", 20034), ("*", "sxid", 12028)], [], [("*", "sxid_fatal", 23001)]]
    news = News()
    news.events(Counted(), 7, whole=True)
    (event,) = news.events(parse_page(NEW.format(what="FATAL", value=20034)).faults, 7, whole=True)
    assert switch_and_link(event.part) == (2, 30)


def test_what_has_no_value_says_nothing_and_stays_listed() -> None:
    page = parse_page(
        GPU
        + OLD.format(what="FATAL", value=2147483632)
        + TOTAL.format(gpu=0, xid="", value=3)
        + TOTAL.format(gpu=0, xid="x7", value=3)
        + 'DCGM_EXP_XID_ERRORS_TOTAL{Hostname="n",xid="31"} 2\n'
    )
    assert page.faults == Counted()
    assert page.unmapped == {"DCGM_FI_DEV_NVSWITCH_FATAL_ERRORS": 1, "DCGM_EXP_XID_ERRORS_TOTAL": 3}


def test_instances_of_one_gpu_that_repeat_its_count_are_one() -> None:
    line = 'DCGM_EXP_XID_ERRORS_TOTAL{{gpu="0",UUID="GPU-0",GPU_I_ID="{}",xid="31"}} 2\n'
    assert told("", line.format(1) + line.format(2)) == [[], [("GPU-0", "xid", 31)]]


@given(st.lists(st.dictionaries(st.sampled_from([13, 31, 79]), st.integers(0, 9)), max_size=8))
def test_no_order_of_counts_tells_more_than_what_grew(counts: list[dict[int, int]]) -> None:
    news = News()
    before: dict[int, int] | None = None
    for page in counts:
        found = news.events(Counted({("GPU-0", code): n for code, n in page.items()}), 7, whole=True)
        for event in found:
            assert before is not None
            assert page[event.code] > before.get(event.code, 0)
        before = page


def test_a_count_and_the_sticky_value_of_one_scrape_are_one_event_and_a_value() -> None:
    pages = iter([GPU + LAST.format(value=0), GPU + LAST.format(value=79) + total(79, 1)])
    with serving(lambda _: Reply(body=next(pages).encode())) as server:
        clock = iter(range(0, 100, 6))
        source = DcgmExporterSource(server.url, 5.0, monotonic=lambda: float(next(clock)), time_ns=lambda: 7)
        assert source.read().events == ()
        reading = source.read()
    assert reading.events == (Event(7, "GPU-0", "xid", 79, "dcgm-exporter: 1 more"),)
    assert reading.gpus[0].values["last_xid"] == 79
    tick = merge(7, [("dcgm-exporter", 20, reading)])
    assert Faults("", names=False).complete(tick).events == reading.events
