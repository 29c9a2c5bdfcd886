"""The export folder in the layout of every downstream tool."""
