"""The model as people download it, in the layout of every tool."""
