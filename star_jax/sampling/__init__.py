"""Text generation: a compiled continuous-batching engine with a shared prefix cache, and its host side."""
