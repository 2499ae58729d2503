"""Tasks with exact answers that tell architectures apart."""
