"""The operators' console: a web page and the calls behind it, served by a process of its own beside the intake."""
