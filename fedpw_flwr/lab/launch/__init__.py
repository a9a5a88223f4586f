"""Starting a run on this machine or a Ray cluster, and showing how it goes on."""
