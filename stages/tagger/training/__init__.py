"""From the first step to the last, stopped and gone on with."""
