"""A fleet that does not exist: GPUs, jobs and known faults, through the same wire as real agents.

`jobs` decides who runs what and when, `faults` what goes wrong, `physics` what that does to clocks,
power and heat, `fleet` turns it into the columns of the field table, `driver` plays it into a
collector. `clusters`, `queueing` and `sampled` are whole clusters as they were measured elsewhere;
`mechanisms`, `trial` and `fault_trial` the runs that the diagnosis is scored on, `healthy_fleet` those on
which it has to be silent. Everything but `driver` is a pure function of the seed. Detectors and accounts
never import this package.
"""
