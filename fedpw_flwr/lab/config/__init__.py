"""The configuration of a run: composed, checked, refused early where it cannot work."""
