"""From which confidence on a tag is given, fitted."""
