"""Callbacks, one concern per file; `base.Callback` lists the hooks."""
