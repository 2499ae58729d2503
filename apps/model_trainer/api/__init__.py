"""The HTTP interface: a file per resource, and what holds for all of them in app.py and security.py."""
