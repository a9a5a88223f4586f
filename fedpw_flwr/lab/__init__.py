"""The `fedpw` command: launch a run safely, show its progress, read and draw what it leaves."""
