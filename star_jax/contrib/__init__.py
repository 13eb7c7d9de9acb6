"""Interoperability with other projects. The core never imports it."""
