"""What the reproductions in papers/ share: runs that are done once, the paper's table beside ours, figures."""
