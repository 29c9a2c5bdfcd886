"""From an image file to a batch of model inputs."""
