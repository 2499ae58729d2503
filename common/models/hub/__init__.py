"""Models in Hugging Face format, both ways. A family is one file in families/: its config.json and its tensor names."""
