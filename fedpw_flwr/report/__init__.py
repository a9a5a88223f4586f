"""Pages that show a run in a browser: what stands on them, and their charts."""
