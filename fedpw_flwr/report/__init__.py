"""A page that shows a run in a browser while it goes on, and after: ``report.html``."""

from fedpw_flwr.report.html_report import HtmlReport

__all__ = ["HtmlReport"]
