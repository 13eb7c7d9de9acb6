"""Reading answers in completions: letters of multiple choice, numbers, and calculator annotations."""
