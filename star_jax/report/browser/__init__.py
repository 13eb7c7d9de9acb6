"""The page's rationale browser: the packed blocks of texts it reads, and the examples shown below it."""
