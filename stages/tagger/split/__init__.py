"""Split posts into training, validation and test."""
