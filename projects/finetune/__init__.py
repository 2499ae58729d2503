"""Go on training a GPT-2, Llama or Qwen of the hub, or a run of one's own, on another text."""
