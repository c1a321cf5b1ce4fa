"""Published weights in, and a run's weights out: `dppmask weights --help`."""
