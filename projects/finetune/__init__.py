"""Fine-tune a GPT-2, Llama or Qwen of the hub, or your own run, on another text."""
