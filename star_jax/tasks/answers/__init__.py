"""Reading and grading answers: multiple choice and numbers."""
