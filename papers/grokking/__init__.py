"""Networks that learn their training set at once and its rule much later."""
