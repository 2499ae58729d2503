"""What happens around training, one concern a file; `base.Callback` lists the hooks."""
