"""hospitals: A Flower app."""
