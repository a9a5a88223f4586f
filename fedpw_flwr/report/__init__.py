"""A page that shows a run in a browser while it goes on, and after: ``report.html``."""
