"""Pictures and metadata from elsewhere: the hub, and tars that are read in place."""
