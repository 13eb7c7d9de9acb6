"""Fine-tuning: packing, loss, optimizer, the compiled train step, and the pretraining of tiny bases."""
