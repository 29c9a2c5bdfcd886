"""Processes and the machine: workers, signals, locks, devices."""
