"""Tag folders of images: decode, predict, caption, write."""
