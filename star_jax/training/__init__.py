"""Fine-tuning: packing, loss, optimizer, the compiled train step, and the pretraining of tiny bases.

From a kept example to the loss: packing.tokenize (token ids and loss weights), packing.pack (PackedRows), batches of
their arrays (fine_tune), loss.unchunked_loss_sums or loss.chunked_loss_sums.
"""
