"""From what people bring to a manifest: posts taken or left out, pictures verified."""
