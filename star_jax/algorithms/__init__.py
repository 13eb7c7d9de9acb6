"""STaR: set-up, the stages of an iteration, selection of training examples, and signs of collapse."""
