"""What the stages share. Modules get paths and values; only the stages know file names."""
