"""From a user's files to the manifest: ingest, filter, verify, group."""
