"""Fixtures of the report's tests: Chromium, and pages opened in it."""

from tests.support.web_browser import chromium, open_page  # noqa: F401
