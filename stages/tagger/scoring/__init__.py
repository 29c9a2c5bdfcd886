"""A model over a part of the posts, and how good it is, in a few passes over the disk."""
