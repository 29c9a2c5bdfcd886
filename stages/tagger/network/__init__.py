"""The model, and the weights that it starts from."""
