"""Hand marks: draw a sample of kept rationales, let a person mark them, and estimate how much is sound."""
