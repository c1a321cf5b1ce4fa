"""What the commands `train`, `eval`, `masks` and `show-config` read from the command line."""
