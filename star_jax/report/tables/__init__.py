"""What the page's tables show: the headline accuracy, comparisons, and the paper's results."""
