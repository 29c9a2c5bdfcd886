"""What is known of tags, and which of them a model learns."""
