"""Lines of the kernel log: what they say of GPUs and NVSwitches, and that nothing in them does harm."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unidle_agent.kernel_lines import MOST_WORDS, SxidLine, XidLine, parse, pci_address, plain

GPU = "NVRM: Xid (PCI:0000:9b:00): "
SWITCH = "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): "


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            f"{GPU}31, pid=4242, name=python3, Ch 00000008, MMU Fault: ENGINE GRAPHICS",
            XidLine("0000:9b:00", 31, 4242, "python3", "Ch 00000008, MMU Fault: ENGINE GRAPHICS"),
        ),
        (
            f"{GPU}79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.",
            XidLine("0000:9b:00", 79, None, "", "GPU has fallen off the bus."),
        ),
        (
            f"{GPU}13, pid='77', name='nccl test', Graphics Exception: ESR 0x50c=0x1",
            XidLine("0000:9b:00", 13, 77, "nccl test", "Graphics Exception: ESR 0x50c=0x1"),
        ),
        (f"{GPU}48, An uncorrectable error", XidLine("0000:9b:00", 48, None, "", "An uncorrectable error")),
        (
            f"{GPU}31, Ch 00000008, pid=7, name=anna, MMU Fault",
            XidLine("0000:9b:00", 31, None, "", "Ch 00000008, pid=7"),
        ),
        (f"{GPU}8", XidLine("0000:9b:00", 8, None, "", "")),
        (f"{GPU}45, pid=7", XidLine("0000:9b:00", 45, 7, "", "")),
        (
            "NVRM: Xid (PCI:0000:3B:00 GPU-I:05): 43, pid=9, name=x, Ch 2",
            XidLine("0000:3b:00", 43, 9, "x", "Ch 2"),
        ),
        (
            f"{GPU}154, pid=1, name=a, after NVRM: Xid (PCI:0000:9b:00): 79, it was lost",
            XidLine("0000:9b:00", 154, 1, "a", "after NVRM: Xid (PCI:0000:9b:00): 79, it was lost"),
        ),
        (
            f"{SWITCH}20034, Fatal, Link 30 LTSSM Fault",
            SxidLine(3, "0000:c1:00", 20034, True, 30, "Fatal, Link 30 LTSSM Fault"),
        ),
        (
            f"{SWITCH}12028, Non-fatal, Link 7 egress",
            SxidLine(3, "0000:c1:00", 12028, False, 7, "Non-fatal, Link 7 egress"),
        ),
        (
            f"{SWITCH}19084, Severity 1 Engine instance 04",
            SxidLine(3, "0000:c1:00", 19084, None, None, "Severity 1 Engine instance 04"),
        ),
        (
            f"{SWITCH}19084, Data {{0x00000001, 0x00}}",
            SxidLine(3, "0000:c1:00", 19084, None, None, "Data ?0x00000001, 0x00?"),
        ),
    ],
)
def test_a_line_of_the_driver_is_read(line: str, said: XidLine | SxidLine) -> None:
    assert parse(line) == said


@pytest.mark.parametrize(
    "line",
    [
        "",
        "NVRM: GPU at PCI:0000:9b:00: GPU-0b1c",
        "NVRM: Xid (PCI:0000:9b:00): 7x, pid=1",
        "NVRM: Xid (PCI:0000:9b): 79, pid=1",
        "NVRM: Xid (PCI:0000:9b:00): , pid=1",
        "NVRM: Xid (PCI:0000:9b:00): 12345678901234567890",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 2003?, Fatal, Link 30",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 2003, Fatal, Link 30",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034, F?t?l, L",
        "nvidia-nvswitch3: SXid (PCI:0000:c1:00.0): 20034",
        "nvidia-nvswitch: SXid (PCI:0000:c1:00.0): 20034, Fatal",
        "backup[77]: NVRM: Xid (PCI:0000:9b:00): 79, a program said so",
    ],
)
def test_a_garbled_line_or_that_of_a_program_says_nothing(line: str) -> None:
    assert parse(line) is None


@pytest.mark.parametrize(
    ("written", "address"),
    [
        ("00000000:9B:00.0", "0000:9b:00"),
        ("0000:9b:00", "0000:9b:00"),
        ("00010000:C1:1F.7", "10000:c1:1f"),
        ("0001:0a:00.0", "0001:0a:00"),
        ("", None),
        ("GPU-0b1c", None),
        ("9b:00.0", None),
    ],
)
def test_addresses_are_one_however_they_are_written(written: str, address: str | None) -> None:
    assert pci_address(written) == address


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=15).filter(lambda name: "'" not in name))
@example("a, 79, b")
@example(", ")
def test_no_part_of_a_process_name_is_left_in_the_words(name: str) -> None:
    said = parse(f"{GPU}31, pid=4242, name={name}, MMU Fault: a kernel touched what it does not own")
    assert isinstance(said, XidLine)
    assert (said.code, said.pid) == (31, 4242)
    assert said.words in ("MMU Fault: a kernel touched what it does not own", "")


@given(st.text(max_size=300))
def test_no_line_breaks_the_reader_and_words_are_bounded_and_plain(rest: str) -> None:
    for line in (rest, GPU + rest, f"{GPU}31{rest}", f"{GPU}31, {rest}", f"{SWITCH}20034, {rest}"):
        said = parse(line)
        if said is not None:
            assert len(said.words) <= MOST_WORDS
            assert not set("<>&*`|~[]{}!\\\n\r\t\x00\x1b") & set(said.words)
    assert plain(plain(rest)) == plain(rest)
