"""Networks that learn their training set at once and its rule much later."""

GROKKED = 0.95  # validation accuracy; a run ends there
