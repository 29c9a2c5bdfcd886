"""Tag names, categories, aliases and implications; which tags a model learns."""
