"""The language model on transformers, what a model's directory holds, prompts, batches."""
