"""Download images and metadata from the hub; read tar shards in place."""
