"""A fleet that does not exist: GPUs, jobs and known faults, through the same wire as real agents.

`jobs` decides who runs what and when, `faults` what goes wrong, `physics` what that does to clocks,
power and heat, `fleet` turns it into the columns of the field table, `driver` plays it into a
collector. Everything but `driver` is a pure function of the seed. Detectors and accounts never
import this package.
"""
