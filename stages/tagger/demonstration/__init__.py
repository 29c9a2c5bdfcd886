"""Draw the demonstration set."""
