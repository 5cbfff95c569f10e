"""Recorded answers of a machine's GPU driver: the file, who writes it and who plays it.

`unidle agent record FILE` asks everything there is to ask for a minute and writes it down;
`unidle agent --replay FILE` runs the agent from that file, and so does the library of the tests
(tests/nvml), which knows the same format. `calls` is the one table that both sides are made from.
"""
