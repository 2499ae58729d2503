"""A transformer whose backward pass is written by hand."""
